"""Laws of `python -m benchmarks.<part>`: a mistake is told before any work, by exit code 2."""

import pytest

from benchmarks import anatomy, cores, exit_code, generator, gpu_check, reward_curve, testset
from nnunet_lgesynth.config import UserError

FOLD = ["-d", "116", "-f", "4"]


@pytest.mark.parametrize("part, flags", [
    (anatomy, FOLD), (generator, FOLD), (reward_curve, [*FOLD, "--judges", "judges"]),
    (cores, [*FOLD, "--judge", "judge", "--generators", "fold_4"]),
    (gpu_check, ["-device", "cpu", "--tiny"])], ids=lambda p: getattr(p, "__name__", ""))
def test_a_result_that_could_not_be_written_is_refused(part, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", *flags, "-o", str(tmp_path / "missing" / "rows.json")])
    with pytest.raises(SystemExit) as ended:
        part.main()
    assert ended.value.code == 2 and "its folder does not exist" in capsys.readouterr().err


def test_a_users_mistake_ends_with_one_sentence(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["testset", *FOLD])
    assert exit_code("testset", testset.main) == 2
    said = capsys.readouterr().err
    assert said.startswith("testset: error: ") and said.count("\n") == 1


def test_exit_codes():
    def broken():
        raise UserError("Rule, value, remedy.")

    assert [exit_code("x", work) for work in (lambda: None, lambda: 1, broken)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        exit_code("x", lambda: 1 / 0)
