from nnunet_imbal.report import write_report


def test_a_report_names_what_was_missed(two_lesions, tmp_path):
    page = write_report(two_lesions.save(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "1 of 2 lesions was missed" in page
