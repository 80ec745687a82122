"""The vessel phantom: its anatomy is that of real cohorts, and its truth is the truth."""

import json
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import label
from scipy.stats import chisquare, kstest, truncnorm
from skimage.measure import euler_number

from nnunet_imbal.check import check_dataset
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.metrics import touching_classes
from nnunet_imbal.phantoms import VesselPhantom, write_dataset
from nnunet_imbal.phantoms._circle_of_willis import CLASSES, PUBLISHED, VARIANTS, draw_anatomy, draw_links
from nnunet_imbal.phantoms._graph import betti_of_graph
from nnunet_imbal.phantoms._tubes import Canvas, Tube, bent, fork, length_of, line_voxels
from nnunet_imbal.phantoms._unusual_vessels import with_aneurysm

COARSE = VesselPhantom(shape=(64, 54, 70), spacing=(1.0, 1.0, 1.0))
LINKS = ("Acom", "R-A1", "L-A1", "R-P1", "L-P1", "R-Pcom", "L-Pcom")


@pytest.fixture(scope="module")
def cases():
    return [COARSE.training_case(seed=1, index=index) for index in range(5)]


def unusual(**shares):
    return VesselPhantom(shape=COARSE.shape, spacing=COARSE.spacing, **shares)


@pytest.fixture(scope="module")
def unusual_cases():
    return [unusual(aneurysm_share=1.0, kissing_share=1.0).training_case(seed=3, index=index) for index in range(3)]


@pytest.fixture(scope="module")
def anatomies():
    rng = np.random.default_rng(0)
    return [draw_anatomy(rng, draw_links(rng, 0.0, 0.0), min_gap_mm=0.0) for _ in range(300)]


def truncated(spread):
    low, high = (spread.low - spread.mean) / spread.sd, (spread.high - spread.mean) / spread.sd
    return truncnorm(low, high, spread.mean, spread.sd)


def of_part(anatomy, part, sizes):
    """Sizes of a segment on both sides; a Pcom that feeds the posterior cerebral artery is another vessel."""
    names = [part] if part in ("BA", "Acom") else [f"{side}-{part}" for side in "RL"]
    fetal = [part == "Pcom" and anatomy.links[f"{name[0]}-P1"] != "present" for name in names]
    return [sizes[name] for name, other in zip(names, fetal, strict=True) if not other]


def drawn(tubes, shape, spacing, factor=2):
    canvas = Canvas.empty(shape, spacing, factor)
    for tube in tubes:
        canvas.draw(tube)
    return canvas.numbers([tube for tube in tubes if tube.number]), *canvas.lumen()


def betti(mask):
    """Parts, loops and cavities by scikit-image and SciPy; the phantom itself asks our own kernels."""
    padded = np.pad(mask, 1)
    parts, cavities = label(padded, np.ones((3, 3, 3)))[1], label(~padded)[1] - 1
    return [parts, parts + cavities - euler_number(padded, connectivity=3), cavities]


# The cohort


@pytest.mark.parametrize("part", PUBLISHED)
@pytest.mark.parametrize("kind", ["diameter", "length"])
def test_sizes_follow_the_published_distribution(anatomies, part, kind):
    drawn = [value for one in anatomies for value in of_part(one, part, getattr(one, f"{kind}s"))]
    spread = getattr(PUBLISHED[part], kind)
    # 12 tests with a fixed seed: 0.004 each keeps the chance that a correct sampler had failed below 5 %.
    assert kstest(drawn, truncated(spread).cdf).pvalue > 0.004
    assert np.mean(drawn) == pytest.approx(spread.mean, rel=0.03)
    assert np.std(drawn) == pytest.approx(spread.sd, rel=0.15)


def test_volume_of_the_vessels_spans_two_orders_of_magnitude(anatomies):
    volume = {name: [] for name in CLASSES}
    for anatomy in anatomies:
        for segment in anatomy.segments:
            volume[segment.label].append(segment.volume_mm3)
    basilar, fine = np.mean(volume["BA"]), np.mean(volume["Acom"])
    assert basilar == pytest.approx(254, rel=0.1)
    assert fine < basilar / 20  # each half of the Acom, inside the walls of both anterior arteries too


def test_variants_are_as_frequent_as_published():
    rng = np.random.default_rng(0)
    missing = Counter(
        frozenset(name for name in LINKS if links[name] != "present")
        for links in (draw_links(rng, 0.3, 0.021) for _ in range(5000))
    )
    wanted = {frozenset(names): share for names, share in VARIANTS.items()}
    assert sum(wanted.values()) == pytest.approx(1)
    assert set(missing) == set(wanted)
    assert chisquare([missing[key] for key in wanted], [5000 * share for share in wanted.values()]).pvalue > 0.01
    assert missing[frozenset()] / 5000 == pytest.approx(0.119, abs=0.015)
    assert missing[frozenset({"R-Pcom", "L-Pcom"})] / 5000 == pytest.approx(0.278, abs=0.02)
    assert sum(sorted(wanted.values())[-5:]) == pytest.approx(0.685)


def test_hypoplastic_and_third_a2_shares():
    rng = np.random.default_rng(0)
    draws = [draw_links(rng, 0.3, 0.5) for _ in range(3000)]
    states = Counter(links[name] for links in draws for name in LINKS)
    assert states["hypoplastic"] / (states["hypoplastic"] + states["absent"]) == pytest.approx(0.3, abs=0.02)
    with_acom = [links["3rd-A2"] for links in draws if links["Acom"] != "absent"]
    assert with_acom.count("present") / len(with_acom) == pytest.approx(0.5, abs=0.03)
    assert all(links["3rd-A2"] == "absent" for links in draws if links["Acom"] == "absent")


def test_a_missing_p1_makes_the_pcom_a_large_artery():
    links = dict.fromkeys([*LINKS, "3rd-A2"], "present") | {"R-P1": "absent"}
    anatomy = draw_anatomy(np.random.default_rng(0), links, min_gap_mm=0.0)
    assert anatomy.diameters["R-Pcom"] == anatomy.diameters["R-P2"]
    assert "R-P1" not in {segment.name for segment in anatomy.segments}


# The graph


def test_centrelines_are_as_long_and_wide_as_drawn_and_meet_at_nodes(anatomies):
    for anatomy in anatomies[:50]:
        ends = {}
        for segment in anatomy.segments:
            assert length_of(segment.points) == pytest.approx(anatomy.lengths[segment.name], rel=1e-3)
            assert 2 * segment.radii.mean() == pytest.approx(anatomy.diameters[segment.name], rel=1e-6)
            for node, point in ((segment.start, segment.points[0]), (segment.end, segment.points[-1])):
                np.testing.assert_allclose(point, ends.setdefault(node, point), atol=1e-9)
        free = sum(length_of(s.points) for s in anatomy.segments if s.label == "Acom")
        if free:
            walls = (anatomy.diameters["R-A2"] + anatomy.diameters["L-A2"]) / 2
            assert free - walls == pytest.approx(anatomy.lengths["Acom"], rel=1e-3)


def test_complete_circle_has_one_loop_and_a_broken_one_none(anatomies):
    for anatomy in anatomies:
        parts, loops, _ = betti_of_graph([(s.start, s.end) for s in anatomy.segments])
        assert loops == (1 if all(anatomy.links[name] == "present" for name in LINKS) else 0)
        # Cutting the ring once leaves one piece; every further cut makes one more.
        cuts = sum(anatomy.links[name] != "present" for name in LINKS)
        assert parts == max(cuts, 1)


def test_betti_numbers_of_known_graphs():
    assert betti_of_graph([]) == (0, 0, 0)
    assert betti_of_graph([("a", "b")]) == (1, 0, 0)
    assert betti_of_graph([("a", "b"), ("b", "a")]) == (1, 1, 0)
    theta = [("a", "b"), ("b", "c"), ("a", "d"), ("d", "c"), ("a", "c")]
    assert betti_of_graph(theta) == (1, 2, 0)


@pytest.mark.parametrize("length", [10.0, 10.5, 14.0])
def test_bent_curves_have_the_wanted_length(length):
    curve = bent(np.zeros(3), np.array([6.0, 0.0, 8.0]), length, np.array([1.0, 1.0, 0.0]), sway=0.4)
    assert length_of(curve) == pytest.approx(length, rel=1e-3)
    np.testing.assert_allclose(curve[[0, -1]], [[0, 0, 0], [6, 0, 8]], atol=1e-9)
    steps = np.linalg.norm(np.diff(curve, axis=0), axis=1)
    assert steps.max() <= 0.2501
    turns = [a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairwise(np.diff(curve, axis=0))]
    assert min(turns) > 0.95


def test_branches_obey_murrays_law():
    tubes = fork(np.random.default_rng(0), np.zeros(3), np.array([0.0, 0.0, 1.0]), 1.0, smallest=0.1, depth=1)
    first, second = (tube.radii[0] for tube in tubes)
    assert first**3 + second**3 == pytest.approx(1)
    assert 0.6 <= second / first <= 1


# The voxels


def test_voxels_have_the_topology_of_the_graph(cases, unusual_cases):
    for case in [*cases, *unusual_cases]:
        assert case.truth["betti"]["merged"] == betti(case.label > 0)
        for value, name in enumerate(CLASSES, start=1):
            assert case.truth["betti"][name] == betti(case.label == value)


def test_thin_links_close_the_circle_and_absent_ones_open_it():
    options = {"shape": COARSE.shape, "spacing": COARSE.spacing, "third_a2_share": 1.0}
    for index in range(2):
        thin = VesselPhantom(hypoplastic_share=1.0, **options).training_case(0, index)
        assert thin.truth["betti"]["merged"] == [1, 1, 0]
        assert (thin.label == CLASSES.index("3rd-A2") + 1).sum() > 5
        absent = VesselPhantom(hypoplastic_share=0.0, **options).training_case(0, index)
        complete = all(absent.truth["links"][name] == "present" for name in LINKS)
        assert absent.truth["betti"]["merged"][1] == int(complete)


def test_a_class_is_there_exactly_if_the_graph_has_it(cases):
    for case in cases:
        assert {CLASSES[value - 1] for value in np.unique(case.label) if value} == {
            segment["class"] for segment in case.truth["segments"]
        }
        for segment in case.truth["segments"]:
            own = case.instances == segment["id"]
            assert own.sum() == segment["voxels"]
            assert set(np.unique(case.label[own])) == {CLASSES.index(segment["class"]) + 1}


def test_centrelines_run_through_their_class_and_walls_lie_at_the_radius():
    case = VesselPhantom(shape=(104, 88, 114), spacing=(0.6, 0.6, 0.6), hypoplastic_share=0).training_case(2, 0)
    labels = case.label.T
    basilar = next(segment for segment in case.truth["segments"] if segment["name"] == "BA")
    points = np.array(basilar["points_mm"])
    for point in points[10:-10]:
        assert labels[tuple(np.rint(point / 0.6).astype(int))] == 1
    grid = np.argwhere(labels == 1) * 0.6
    distance = np.linalg.norm(grid[:, None] - points, axis=-1)
    inner = (distance.argmin(axis=1) > 10) & (distance.argmin(axis=1) < len(points) - 10)
    radius = np.array(basilar["radius_mm"])[distance.argmin(axis=1)]
    assert (distance.min(axis=1)[inner] <= radius[inner] + 0.5 * 0.6).all()
    slab = inner.sum() * 0.6**3 / (np.pi * np.mean(radius) ** 2 * (len(points) - 20) * basilar["length_mm"])
    assert slab * (len(points) - 1) == pytest.approx(1, rel=0.06)


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 0.7), (1.5, 0.5, 0.5)])
@pytest.mark.parametrize("radius", [0.05, 0.3, 1.5])
def test_tubes_stay_in_one_piece_however_thin(spacing, radius):
    curve = bent(np.array([3.0, 3.0, 3.0]), np.array([14.0, 10.0, 17.0]), 24.0, np.array([0.0, 1.0, 0.0]), sway=0.3)
    shape = tuple(round(22 / s) for s in spacing)
    numbers, _, _ = drawn([Tube(curve, np.full(len(curve), radius), 1.0, 7)], shape, spacing)
    assert betti(numbers == 7) == [1, 0, 0]
    assert set(np.unique(numbers)) == {0, 7}


def test_lines_are_26_connected():
    curve = bent(np.array([3.0, 3.0, 3.0]), np.array([14.0, 10.0, 17.0]), 24.0, np.array([0.0, 1.0, 0.0]))
    path = line_voxels(curve, (20, 20, 20), (1.0, 0.8, 1.2))
    assert max(np.abs(a - b).max() for a, b in pairwise(path)) == 1
    assert (path >= 0).all()
    assert (path < 20).all()


def test_partial_volume_adds_up_to_the_volume_of_the_tube():
    # Off the grid: with the axis on a row of sub-voxels, a circle of 12 sub-voxels is 2.5 % too small.
    line = np.column_stack([np.full(81, 10.03), np.full(81, 10.11), np.linspace(5, 25, 81)])
    numbers, share, glow = drawn([Tube(line, np.full(81, 2.0), 0.8)], (40, 40, 60), (0.5, 0.5, 0.5), factor=3)
    volume = np.pi * 4 * 20 + 4 / 3 * np.pi * 8
    assert share.sum() * 0.125 == pytest.approx(volume, rel=0.02)
    np.testing.assert_allclose(glow, 0.8 * share, atol=1e-6)
    assert not numbers.any()


def test_a_thin_branch_begins_at_the_surface_of_the_thick_vessel():
    trunk = np.column_stack([np.linspace(2, 18, 65), np.full(65, 10.0), np.full(65, 8.0)])
    branch = np.column_stack([np.full(45, 10.0), np.full(45, 10.0), np.linspace(8, 18, 45)])
    tubes = [Tube(trunk, np.full(65, 2.0), 1.0, 1), Tube(branch, np.full(45, 0.6), 1.0, 2)]
    numbers, _, _ = drawn(tubes, (80, 80, 80), (0.25, 0.25, 0.25))
    # Half a voxel for the grid, and one because the sub-voxel that lies deepest decides.
    assert np.argwhere(numbers == 2)[:, 2].min() * 0.25 == pytest.approx(8 + 2 - 0.6, abs=1.5 * 0.25)


def test_unlabelled_tubes_never_take_a_labelled_voxel():
    line = np.column_stack([np.full(41, 5.0), np.full(41, 5.0), np.linspace(2, 8, 41)])
    own, thick = Tube(line, np.full(41, 0.6), 0.9, 1), Tube(line, np.full(41, 2.0), 0.5)
    alone, both = (drawn(tubes, (20, 20, 20), (0.5, 0.5, 0.5))[0] for tubes in ([own], [thick, own]))
    assert alone.any()
    np.testing.assert_array_equal(alone, both)


# Aneurysms and kissing arteries


def test_an_aneurysm_bulges_from_its_artery(unusual_cases):
    for case in unusual_cases:
        (sac,) = [segment for segment in case.truth["segments"] if segment["name"] == "aneurysm"]
        own = case.instances == sac["id"]
        value = CLASSES.index(sac["class"]) + 1
        assert own.sum() == sac["voxels"] > 10
        assert set(np.unique(case.label[own])) == {value}
        centre, radius = np.array(sac["points_mm"][-1]), sac["radius_mm"][-1]
        assert 1.5 <= radius <= 4
        labels = case.label.T
        away = np.linalg.norm(np.moveaxis(np.indices(labels.shape), 0, -1) - centre, axis=-1)
        assert set(labels[away < radius - 0.9]) == {value}  # the dome is full


def test_kissing_arteries_touch_and_stay_two(unusual_cases):
    right, left = (CLASSES.index(f"{side}-ACA") + 1 for side in "RL")
    for case in unusual_cases:
        assert case.truth["contacts"] == [["R-A2", "L-A2"]]
        assert (right, left) in touching_classes(case.label)
        edges = [(segment["start"], segment["end"]) for segment in case.truth["segments"]]
        alone, merged = betti_of_graph(edges), case.truth["betti"]["merged"]
        assert (merged[1] - merged[0]) - (alone.b1 - alone.b0) == 1  # a loop more or a piece less


def test_usual_arteries_do_not_touch(cases):
    right, left = (CLASSES.index(f"{side}-ACA") + 1 for side in "RL")
    for case in cases:
        assert case.truth["contacts"] == []
        assert "aneurysm" not in {segment["name"] for segment in case.truth["segments"]}
        assert (right, left) not in touching_classes(case.label)


def test_shares_of_unusual_vessels():
    rng, phantom = np.random.default_rng(0), unusual(aneurysm_share=0.2, kissing_share=0.4)
    links = draw_links(rng, 0.3, 0.0)
    draws = np.array([phantom._draw_unusual(rng, links) for _ in range(4000)])
    assert draws.mean(axis=0) == pytest.approx([0.2, 0.4], abs=0.02)
    assert not unusual(kissing_share=1.0)._draw_unusual(rng, links | {"3rd-A2": "present"})[1]


def test_aneurysms_grow_wherever_there_is_an_artery_for_them():
    rng = np.random.default_rng(0)
    anatomy = draw_anatomy(rng, dict.fromkeys([*LINKS, "3rd-A2"], "present") | {"R-A1": "absent"}, min_gap_mm=0.0)
    starts = Counter(with_aneurysm(rng, anatomy).segments[-1].start for _ in range(600))
    ends = ("BA-top", "R-C7", "L-C7", "R-M2", "L-M2", "L-A2")
    assert set(starts) == set(ends)
    assert chisquare([starts[end] for end in ends]).pvalue > 0.01


# The image


def test_arteries_are_bright_and_so_is_much_that_has_no_label(cases):
    for case in cases:
        tissue = np.median(case.image[case.label == 0])
        assert np.median(case.image[case.label == 1]) > 2 * tissue
        as_bright = (case.image > 2 * tissue) & (case.label == 0)
        assert as_bright.sum() > 0.5 * (case.label > 0).sum()


def test_same_seed_same_voxels():
    one, same = COARSE.training_case(5, 2), COARSE.training_case(5, 2)
    np.testing.assert_array_equal(one.image, same.image)
    assert one.truth == same.truth
    for other in (COARSE.training_case(6, 2), COARSE.test_case(5, 2)):
        assert (other.image != one.image).mean() > 0.5


def test_right_is_where_x_grows_and_axes_of_the_file_are_x_y_z():
    phantom = VesselPhantom(shape=(46, 54, 80), spacing=(1.4, 1.0, 0.9))
    case = phantom.training_case(0, 0)
    assert case.image.shape == case.label.shape == case.instances.shape == (80, 54, 46)
    assert np.diag(case.affine).tolist() == [0.9, 1.0, 1.4, 1.0]
    x, y, z = (np.argwhere(case.label == CLASSES.index(name) + 1).mean(axis=0) for name in ("R-MCA", "L-MCA", "BA"))
    assert x[0] > y[0]
    assert z[2] < x[2]  # the basilar artery lies below


def test_dataset_is_sound_and_holds_the_truth(tmp_path):
    folder = write_dataset(COARSE, tmp_path, cases=2, test_cases=1, seed=4)
    assert folder.name == "Dataset900_PhantomVessels"
    assert [problem for problem in check_dataset(folder) if problem.serious] == []
    described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert list(described["labels"]) == ["background", *CLASSES]
    assert list(described["labels"].values()) == list(range(14))
    truth = json.loads((folder / "truth" / "vessels_test_000.json").read_text(encoding="utf-8"))
    assert set(truth["betti"]) == {"merged", *CLASSES}
    assert {segment["start"] for segment in truth["segments"]} <= set(truth["nodes"])


@pytest.mark.slow
@pytest.mark.e2e
def test_nnunet_finds_the_dataset_sound(tmp_path):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    folder = write_dataset(COARSE, tmp_path, cases=2, test_cases=0)
    verify_dataset_integrity(str(folder), num_processes=1)


@pytest.mark.parametrize(
    "numbers",
    [
        {"shape": (32, 96, 128)},
        {"spacing": (0.0, 0.6, 0.6)},
        {"hypoplastic_share": 1.5},
        {"third_a2_share": -0.1},
        {"aneurysm_share": 2.0},
        {"kissing_share": -1.0},
        {"noise": float("nan")},
        {"supersampling": 9},
    ],
)
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(ConfigError, match=next(iter(numbers))):
        VesselPhantom(**numbers)


def test_voxels_too_coarse_for_the_vessels_are_refused():
    with pytest.raises(ConfigError, match="too coarse"):
        VesselPhantom(shape=(8, 7, 9), spacing=(8.0, 8.0, 8.0)).training_case(0, 0)
