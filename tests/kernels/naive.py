"""Slow twins of the kernels: obvious loops, nothing clever."""

import itertools
from collections import deque

import numpy as np

RANK = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}


def neighbours(ndim, connectivity):
    steps = itertools.product((-1, 0, 1), repeat=ndim)
    return [step for step in steps if 1 <= sum(map(abs, step)) <= RANK[connectivity]]


def connected_components(labels, connectivity):
    components = np.zeros(labels.shape, np.int32)
    steps = neighbours(labels.ndim, connectivity)
    count = 0
    for start in np.ndindex(labels.shape):
        if labels[start] == 0 or components[start] != 0:
            continue
        count += 1
        components[start] = count
        queue = deque([start])
        while queue:
            voxel = queue.popleft()
            for step in steps:
                other = tuple(v + s for v, s in zip(voxel, step, strict=True))
                inside = all(0 <= o < n for o, n in zip(other, labels.shape, strict=True))
                if inside and components[other] == 0 and labels[other] == labels[start]:
                    components[other] = count
                    queue.append(other)
    return components, count


def nearest_component(labels, spacing):
    cells = np.zeros(labels.shape, np.int32)
    distance = np.full(labels.shape, np.inf, np.float32)
    sites = np.argwhere(labels)  # in raster order
    if len(sites) == 0:
        return cells, distance
    for voxel in np.ndindex(labels.shape):
        squared = (((sites - voxel) * spacing) ** 2).sum(axis=1)
        best = squared.argmin()  # the first of several minima
        cells[voxel] = labels[tuple(sites[best])]
        distance[voxel] = np.sqrt(squared[best])
    return cells, distance


def cell_overlap(probs, target, cells, num_cells):
    sums = np.zeros((3, num_cells + 1))
    for voxel in np.ndindex(cells.shape):
        p, t = float(probs[voxel]), float(target[voxel])
        sums[:, cells[voxel]] += p * t, p, t
    return sums


def cell_overlap_backward(grad, target, cells):
    out = np.empty(cells.shape, grad.dtype)
    for voxel in np.ndindex(cells.shape):
        out[voxel] = grad[0, cells[voxel]] * target[voxel] + grad[1, cells[voxel]]
    return out


def cell_error_overlap(errors, target, cells, num_cells):
    errors = errors.astype(float)
    probs = np.where(target, np.exp(-errors), -np.expm1(-errors))
    return np.stack([cell_overlap(values, target, cells, num_cells) for values in (probs, errors)])


def cell_error_overlap_backward(grad, errors, target, cells):
    slope = np.where(target, -1, 1) * np.exp(-errors.astype(float))
    of_probs, of_errors = (cell_overlap_backward(rows.astype(float), target, cells) for rows in grad)
    return of_probs * slope + of_errors


def cell_voxels(cells, num_cells):
    counts = np.zeros(num_cells + 1, int)
    for voxel in np.ndindex(cells.shape):
        counts[cells[voxel]] += 1
    return counts


def component_max(values, labels, num_components):
    maxima = np.full(num_components + 1, -np.inf, values.dtype)
    places = np.full(num_components + 1, -1)
    for place, (value, label) in enumerate(zip(values.ravel(), labels.ravel(), strict=True)):
        if places[label] < 0 or value > maxima[label]:
            maxima[label], places[label] = value, place
    return maxima, places


def one_vs_rest_cross_entropy(logits, target):
    out = np.empty(target.shape)
    for k, c, voxel in _classes_of_voxels(logits, target):
        z = logits[:, voxel].astype(float)
        own, rest = z[c], np.logaddexp.reduce(np.delete(z, c))
        out[k, voxel] = np.logaddexp(0, rest - own if target[k, voxel] else own - rest)
    return out


def one_vs_rest_cross_entropy_backward(grad, logits, target):
    out = np.zeros(logits.shape)
    for k, c, voxel in _classes_of_voxels(logits, target):
        z = logits[:, voxel].astype(float)
        others = np.delete(z, c)
        rest = np.logaddexp.reduce(others)
        p = np.exp(z[c] - np.logaddexp(z[c], rest))
        slope = grad[k, voxel] * (-np.exp(rest - np.logaddexp(z[c], rest)) if target[k, voxel] else p)
        out[:, voxel] += slope * np.insert(-np.exp(others - rest), c, 1)
    return out


def _classes_of_voxels(logits, target):
    """Row of the target, channel of the logits, voxel."""
    first = len(logits) - len(target)
    return [(k, k + first, voxel) for k in range(len(target)) for voxel in range(target.shape[1])]
