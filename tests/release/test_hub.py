"""Pushing to a hub: what is sent, that it is private, and what is said when it cannot be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError
from tests.minidata import write_data, write_recipe

from vitp.commands.export import export
from vitp.commands.pretrain import pretrain
from vitp.errors import OutputError, VitpError


class FakeHub:
    """The three calls of HfApi that a push makes."""

    def __init__(self, *, public: bool = False, failing: Exception | None = None) -> None:
        self.public, self.failing = public, failing
        self.created: list[tuple[str, bool, bool]] = []
        self.commits: list[tuple[str, dict[str, bytes], str]] = []

    def __call__(self) -> FakeHub:
        return self

    def create_repo(self, repo: str, *, private: bool, exist_ok: bool) -> None:
        if self.failing is not None:
            raise self.failing
        self.created.append((repo, private, exist_ok))

    def repo_info(self, repo: str) -> Any:
        return SimpleNamespace(private=not self.public)

    def create_commit(self, repo: str, operations: list[Any], *, commit_message: str) -> Any:
        sent = {op.path_in_repo: Path(op.path_or_fileobj).read_bytes() for op in operations}
        self.commits.append((repo, sent, commit_message))
        return SimpleNamespace(commit_url=f"https://hub/{repo}/commit/1")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_data(folder / "data", 4)
    pretrain(write_recipe(folder, folder / "data", folder / "out", steps=1, warm_start={"steps": 0}))
    return folder / "out"


def hub(monkeypatch: pytest.MonkeyPatch, fake: FakeHub, token: str | None = "secret") -> FakeHub:
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    return fake


def test_a_file_is_pushed_as_a_repository_that_timm_opens(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, said = hub(monkeypatch, FakeHub()), []
    result = export(run, path=tmp_path / "vit.safetensors", push_to="me/vit", say=said.append)
    assert result.pushed == "https://hub/me/vit/commit/1"
    assert fake.created == [("me/vit", True, True)]
    repo, sent, message = fake.commits[0]
    assert (repo, message) == ("me/vit", "mini, step 1, as timm (vitp export)")
    assert sent.keys() == {"model.safetensors", "config.json", "README.md"}
    assert sent["model.safetensors"] == result.weights.read_bytes()
    assert b"timm.create_model('hf-hub:me/vit', pretrained=True)" in sent["README.md"]
    assert b"hf_hub_download('me/vit', 'model.safetensors')" in sent["README.md"]
    assert said == ["sending to me/vit (private)"]


def test_a_folder_is_pushed_whole_and_public_only_when_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = hub(monkeypatch, FakeHub(public=True))
    with pytest.raises(OutputError, match=r"me/vit is public on the hub: add --public .*; the export stays at"):
        export(run, to="hf-vision", path=tmp_path / "vision", push_to="me/vit")
    assert not fake.commits
    assert (tmp_path / "vision" / "config.json").is_file()
    export(run, to="hf-vision", path=tmp_path / "vision", push_to="me/vit", public=True, overwrite=True)
    assert fake.created[-1] == ("me/vit", False, True)
    assert fake.commits[0][1].keys() == {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "vitp_export.json",
    }  # fmt: skip


def test_no_token_is_said_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, FakeHub(), token=None)
    with pytest.raises(
        VitpError, match=r"--push-to me/vit: no token for the hub; run `hf auth login` or set HF_TOKEN$"
    ):
        export(run, path=tmp_path / "vit.safetensors", push_to="me/vit")
    with pytest.raises(VitpError, match=r"--push-to me/a b: "):
        export(run, path=tmp_path / "vit.safetensors", push_to="me/a b")
    assert not list(tmp_path.iterdir())


def answered(status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"{status} Client Error\nRequest ID: x", response=response)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (answered(401), "does not accept the token"),
        (answered(403), "no right to write there"),
        (answered(500), r"the hub refused \(500 Client Error\)"),
        (ConnectionError("Name or service not known"), r"cannot be reached \(Name or service not known\)"),
        (huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled"), "cannot be reached"),
    ],
)
def test_a_hub_that_refuses_or_is_silent_is_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    hub(monkeypatch, FakeHub(failing=error))
    with pytest.raises(OutputError, match=said) as caught:
        export(run, path=tmp_path / "vit.safetensors", push_to="me/vit")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "vit.safetensors").is_file()


def test_a_mistake_of_ours_is_not_called_one_of_the_hub(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, FakeHub(failing=KeyError("ours")))
    with pytest.raises(KeyError):
        export(run, path=tmp_path / "vit.safetensors", push_to="me/vit")
