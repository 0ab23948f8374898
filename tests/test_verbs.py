"""What the verbs do beyond what their modules do; the command line itself: test_main.py."""

from cnn_jax import verbs
from cnn_jax.main import main
from cnn_jax.report import write


def test_the_main_job_ends_with_its_page_and_does_not_fail_for_it(monkeypatch, capsys, tmp_path):
    trained = []
    monkeypatch.setattr(verbs, "ROOT", tmp_path)
    monkeypatch.setattr(verbs, "_train", lambda config, workdir: trained.append(workdir))
    monkeypatch.setattr(write, "write_report", lambda workdir: workdir / "report.html")
    assert main([]) == 0 and trained == [tmp_path / "runs" / "lenet_digits"]
    assert capsys.readouterr().out == f"its page: {tmp_path}/runs/lenet_digits/report.html\n"

    def fail(workdir):
        raise RuntimeError("no room\nat all")

    monkeypatch.setattr(write, "write_report", fail)
    assert main([]) == 0
    assert capsys.readouterr() == ("", "warning: no page was written: no room\n")
