import concurrent.futures
import hashlib
import json
import multiprocessing
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
import tensorflow_datasets as tfds

from relu_sparsity.data import docs, sources
from relu_sparsity.data.builders import TextFiles, is_heldout
from relu_sparsity.data.sources import Documents
from relu_sparsity.errors import TryAgain, UserError
from relu_sparsity.params import DataParams

TEXTS = [f"Web page number {i}, with a few words on it." for i in range(30)]


class C4(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of C4's shape."""

    VERSION = tfds.core.Version("3.1.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="en")]
    code_path = None
    SPLITS: ClassVar = {"train": TEXTS[:20], "validation": TEXTS[20:]}
    TEXT = "text"

    def _info(self) -> tfds.core.DatasetInfo:
        names = [self.TEXT, "timestamp", "url", "content-type", "content-length"]
        features = {name: tfds.features.Text() for name in names}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        return {name: self._generate_examples(texts) for name, texts in self.SPLITS.items()}

    def _generate_examples(self, texts: list[str]) -> Iterator:
        for text in texts:
            yield text, dict.fromkeys(self.info.features, text)


def store(builder: type[C4], data_dir: Path) -> DataParams:
    tfds.disable_progress_bar()
    builder(data_dir=data_dir, file_format="array_record").download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return DataParams(source="tfds", tfds_name="c4/en", data_dir=str(data_dir))


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def as_tfrecord(stored: Path) -> None:
    """Rewrites a stored data set in TFRecord's format (TensorFlow's `record_writer.h`)."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    for path in list(stored.glob("*.array_record-*")):
        with Path(str(path).replace(".array_record-", ".tfrecord-")).open("wb") as file:
            for record in ArrayRecordDataSource(str(path)):
                length = struct.pack("<Q", len(record))
                file.write(length + struct.pack("<I", crc32c(length)))
                file.write(record + struct.pack("<I", crc32c(record)))
        path.unlink()
    edit_info(stored, fileFormat="tfrecord")


def edit_info(stored: Path, **changes: object) -> None:
    info = json.loads((stored / "dataset_info.json").read_text())
    (stored / "dataset_info.json").write_text(json.dumps(info | changes))


@pytest.fixture
def c4(tmp_path: Path) -> DataParams:
    return store(C4, tmp_path / "tfds")


@pytest.fixture
def text_params(tmp_path: Path) -> DataParams:
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS[:15]))
    lines = [json.dumps({"text": text}) for text in TEXTS[15:] + TEXTS[:1]]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    return DataParams(
        source="text", files=(f"{tmp_path}/*.txt", f"{tmp_path}/b.jsonl"), heldout_fraction=0.3
    )


class TestIdentity:
    def test_docs(self, docs_params: DataParams):
        found = sources.identity(docs_params)
        assert found["packages"] == docs.versions(["optax"])
        assert json.loads(json.dumps(found)) == found

    def test_text(self, text_params: DataParams, tmp_path: Path):
        found = sources.identity(text_params)
        digest = hashlib.sha256((tmp_path / "a.txt").read_bytes()).hexdigest()
        assert found["files"][0] == ["a.txt", digest]
        assert json.loads(json.dumps(found)) == found
        (tmp_path / "a.txt").write_text("other")
        assert sources.identity(text_params) != found

    def test_tfds_takes_the_newest_stored_version(self, tmp_path: Path):
        for version in ("3.1.0", "10.0.1", "9.9.9", "10.0.1.incomplete"):
            (tmp_path / "c4" / "en" / version).mkdir(parents=True)
        params = DataParams(source="tfds", tfds_name="c4/en", data_dir=str(tmp_path))
        assert sources.identity(params)["version"] == "10.0.1"
        assert sources.identity(params)["name"] == "c4/en"

    def test_tfds_version_can_be_given(self):
        params = DataParams(source="tfds", tfds_name="c4/en:3.0.1", data_dir="gs://bucket/folder")
        found = sources.identity(params)
        assert (found["name"], found["version"]) == ("c4/en", "3.0.1")

    def test_tfds_version_is_open_where_nothing_is_stored(self, tmp_path: Path):
        params = DataParams(source="tfds", tfds_name="c4/en", data_dir=str(tmp_path))
        assert sources.identity(params)["version"] is None

    @pytest.mark.parametrize("name", ["", "C4", "c4/en:latest", "c4/en/3.0.1/x", "../c4"])
    def test_a_name_that_is_none(self, name: str):
        with pytest.raises(UserError, match=rf"data\.tfds_name: '{name}' is not a .*; allowed"):
            sources.identity(DataParams(source="tfds", tfds_name=name))

    def test_needs_neither_tfds_nor_jax(self):
        code = (
            "import sys; from relu_sparsity.data import sources; "
            "from relu_sparsity.params import DataParams; "
            "sources.identity(DataParams(packages=('numpy',))); "
            "print({'tensorflow_datasets', 'jax', 'grain'} & set(sys.modules))"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert ran.stdout == "set()\n"


class TestDocs:
    def test_every_document_is_in_the_split_of_its_hash(
        self, train_documents: Documents, heldout_documents: Documents
    ):
        assert {*train_documents, *heldout_documents} == {*docs.documents(["optax"])}
        assert len(train_documents) + len(heldout_documents) == len({*docs.documents(["optax"])})
        assert not any(is_heldout(document, 0.2) for document in train_documents)
        assert all(is_heldout(document, 0.2) for document in heldout_documents)

    def test_random_access(self, train_documents: Documents):
        everything = list(train_documents)
        assert len(everything) == len(train_documents)
        assert train_documents[-1] == everything[-1]
        assert train_documents[3:5] == everything[3:5]
        with pytest.raises(IndexError):
            train_documents[len(everything)]

    def test_reading_ahead_keeps_the_order(
        self, docs_params: DataParams, docs_folder: Path, train_documents: Documents
    ):
        ahead = docs_params.model_copy(update={"read_threads": 3})
        assert [*sources.documents(ahead, docs_folder, "train")] == [*train_documents]
        assert sources.identity(ahead) == sources.identity(docs_params)

    def test_a_finished_folder_is_used_again(self, docs_params: DataParams, docs_folder: Path):
        before = {path: path.stat().st_mtime_ns for path in docs_folder.rglob("*")}
        assert sources.prepare(docs_params, docs_folder.parent) == docs_folder
        assert {path: path.stat().st_mtime_ns for path in docs_folder.rglob("*")} == before

    def test_what_a_killed_build_left_does_not_matter(
        self, docs_params: DataParams, docs_folder: Path, tmp_path: Path
    ):
        partial = tmp_path / f".{docs_folder.name}.partial"
        partial.mkdir()
        (partial / "half").touch()
        folder = sources.prepare(docs_params, tmp_path)
        names = sorted(path.relative_to(folder) for path in folder.rglob("*"))
        assert names == sorted(path.relative_to(docs_folder) for path in docs_folder.rglob("*"))
        assert not partial.exists()

    def test_two_processes_at_once(self, tmp_path: Path):
        params = DataParams(packages=("typer",), heldout_fraction=0.3)
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(2, context) as executor:
            built = [executor.submit(sources.prepare, params, tmp_path) for _ in range(2)]
            first, second = (future.result() for future in built)
        assert first == second
        assert len(sources.documents(params, first, "train")) > 0

    def test_the_fraction_decides_the_folder(
        self, docs_params: DataParams, docs_folder: Path, tmp_path: Path
    ):
        other = docs_params.model_copy(update={"heldout_fraction": 0.5})
        folder = sources.prepare(other, tmp_path)
        assert folder.name != docs_folder.name
        more = {*sources.documents(other, folder, "heldout")}
        assert more > {*sources.documents(docs_params, docs_folder, "heldout")}

    def test_a_package_that_is_not_installed(self, tmp_path: Path):
        params = DataParams(packages=("no-such-package",))
        with pytest.raises(UserError, match="'no-such-package' is not installed"):
            sources.prepare(params, tmp_path / "root")
        assert not (tmp_path / "root").exists()

    def test_a_folder_that_is_not_prepared(self, docs_params: DataParams, tmp_path: Path):
        with pytest.raises(UserError, match=r"source\.json: no such file; allowed"):
            sources.documents(docs_params, tmp_path, "train")


class TestText:
    def test_both_kinds_of_file(self, text_params: DataParams, tmp_path: Path):
        folder = sources.prepare(text_params, tmp_path / "root")
        splits = {
            split: [*sources.documents(text_params, folder, split)]
            for split in ("train", "heldout")
        }
        assert sorted(splits["train"] + splits["heldout"]) == sorted(TEXTS + TEXTS[:1])
        assert not {*splits["train"]} & {*splits["heldout"]}

    def test_more_text_moves_no_document(self, text_params: DataParams, tmp_path: Path):
        folder = sources.prepare(text_params, tmp_path / "root")
        before = {*sources.documents(text_params, folder, "heldout")}
        (tmp_path / "z.txt").write_text("\n\n".join(f"A new paragraph {i}." for i in range(30)))
        grown = sources.prepare(text_params, tmp_path / "root")
        assert grown != folder
        assert {*sources.documents(text_params, grown, "heldout")} > before

    def test_bad_text_is_found_before_anything_is_built(
        self, text_params: DataParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        with (tmp_path / "b.jsonl").open("a") as file:
            file.write("\nnot JSON")
        with monkeypatch.context() as patch:
            patch.setattr(
                TextFiles, "download_and_prepare", lambda *_, **__: pytest.fail("it is built")
            )
            with pytest.raises(UserError, match=r"b\.jsonl: line 17: not JSON"):
                sources.prepare(text_params, tmp_path / "root")
        lines = (tmp_path / "b.jsonl").read_text().splitlines()[:-1]
        (tmp_path / "b.jsonl").write_text("\n".join(lines))
        assert sources.prepare(text_params, tmp_path / "root").exists()

    @pytest.mark.parametrize(("fraction", "split"), [(0.000001, "heldout"), (0.999999, "train")])
    def test_a_split_without_documents(
        self, text_params: DataParams, tmp_path: Path, fraction: float, split: str
    ):
        params = text_params.model_copy(update={"heldout_fraction": fraction})
        with pytest.raises(
            UserError, match=rf"data\.heldout_fraction: {fraction} of 31 .* none in the {split}"
        ):
            sources.prepare(params, tmp_path / "root")


class TestTfds:
    def test_array_record_is_read_where_it_lies(self, c4: DataParams, tmp_path: Path):
        folder = sources.prepare(c4, tmp_path / "root")
        assert [path.name for path in folder.iterdir()] == ["source.json"]
        assert sorted(sources.documents(c4, folder, "train")) == sorted(TEXTS[:20])
        assert sorted(sources.documents(c4, folder, "heldout")) == sorted(TEXTS[20:])

    def test_tfrecord_is_converted(self, c4: DataParams, tmp_path: Path):
        expected = [*sources.documents(c4, sources.prepare(c4, tmp_path / "a"), "train")]
        as_tfrecord(tmp_path / "tfds" / "c4" / "en" / "3.1.0")
        folder = sources.prepare(c4, tmp_path / "b")
        assert [*sources.documents(c4, folder, "train")] == expected
        shutil.rmtree(tmp_path / "tfds" / "c4" / "en")
        assert sorted(sources.documents(c4, folder, "heldout")) == sorted(TEXTS[20:])

    def test_array_record_beside_tfrecord(self, c4: DataParams, tmp_path: Path):
        stored = tmp_path / "tfds" / "c4" / "en" / "3.1.0"
        copies = {path.name: path.read_bytes() for path in stored.glob("*.array_record-*")}
        as_tfrecord(stored)
        for name, content in copies.items():
            (stored / name).write_bytes(content)
        edit_info(stored, alternativeFileFormats=["array_record"])
        folder = sources.prepare(c4, tmp_path / "root")
        assert [path.name for path in folder.iterdir()] == ["source.json"]
        assert sorted(sources.documents(c4, folder, "train")) == sorted(TEXTS[:20])

    @pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
    def test_what_an_older_tfds_stored(self, c4: DataParams, tmp_path: Path, file_format: str):
        stored = tmp_path / "tfds" / "c4" / "en" / "3.1.0"
        if file_format == "tfrecord":
            as_tfrecord(stored)
        info = json.loads((stored / "dataset_info.json").read_text())
        for key in ("configName", "configDescription", "moduleName"):
            info.pop(key, None)
        (stored / "dataset_info.json").write_text(json.dumps(info))
        folder = sources.prepare(c4, tmp_path / "root")
        assert json.loads((folder / "source.json").read_text())["name"] == "c4/en"
        assert sorted(sources.documents(c4, folder, "train")) == sorted(TEXTS[:20])

    def test_a_folder_relative_to_the_working_folder(
        self, c4: DataParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        relative = c4.model_copy(update={"data_dir": "./tfds/"})
        folder = sources.prepare(relative, tmp_path / "root")
        assert len(sources.documents(relative, folder, "heldout")) == 10

    def test_damaged_tfrecord(self, c4: DataParams, tmp_path: Path):
        stored = tmp_path / "tfds" / "c4" / "en" / "3.1.0"
        as_tfrecord(stored)
        path = next(stored.glob("*train.tfrecord-*"))
        path.write_bytes(path.read_bytes()[:-7])
        with pytest.raises(UserError, match=rf"{re.escape(str(path))}: damaged: .*; allowed"):
            sources.prepare(c4, tmp_path / "root")

    def test_a_data_set_that_is_not_there(self, c4: DataParams, tmp_path: Path):
        params = c4.model_copy(update={"tfds_name": "c4/de"})
        where = re.escape(str(tmp_path / "tfds"))
        with pytest.raises(
            UserError,
            match=rf"data\.tfds_name: no data set 'c4/de' in data\.data_dir '{where}', which "
            rf"holds c4/en/3\.1\.0; allowed: .*tfds build c4/de --data_dir={where}",
        ):
            sources.prepare(params, tmp_path / "root")

    def test_a_store_that_does_not_answer_is_worth_another_try(
        self, c4: DataParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def reset(*_):
            raise ConnectionResetError("reset by peer")

        monkeypatch.setattr(sources, "_open", reset)
        with pytest.raises(TryAgain, match=r"data\.data_dir: .* does not answer .*reset by peer"):
            sources.prepare(c4, tmp_path / "root")

    def test_a_version_that_is_not_there(self, c4: DataParams, tmp_path: Path):
        params = c4.model_copy(update={"tfds_name": "c4/en:2.0.0"})
        with pytest.raises(UserError, match=r"no data set 'c4/en:2\.0\.0'"):
            sources.prepare(params, tmp_path / "root")

    def test_a_folder_that_is_not_there(self, tmp_path: Path):
        params = DataParams(source="tfds", data_dir=str(tmp_path / "none"))
        with pytest.raises(UserError, match=r"data\.data_dir '.*none', which holds none"):
            sources.prepare(params, tmp_path / "root")

    def test_no_validation_split(self, tmp_path: Path):
        class TrainOnly(C4, skip_registration=True):
            name = "c4"
            SPLITS: ClassVar = {"train": TEXTS}

        with pytest.raises(UserError, match=r"no split 'validation' among \['train'\]; allowed"):
            sources.prepare(store(TrainOnly, tmp_path), tmp_path / "root")

    def test_no_text_feature(self, tmp_path: Path):
        class Textless(C4, skip_registration=True):
            name = "c4"
            TEXT = "body"

        with pytest.raises(UserError, match=r"no feature 'text' among \['body', .*; allowed"):
            sources.prepare(store(Textless, tmp_path), tmp_path / "root")

    def test_a_missing_file(self, c4: DataParams, tmp_path: Path):
        next((tmp_path / "tfds").rglob("*train.array_record*")).unlink()
        with pytest.raises(UserError, match=r"c4-train\.array_record-\S+ is missing \(1 of the"):
            sources.prepare(c4, tmp_path / "root")

    def test_a_format_that_cannot_be_read(self, c4: DataParams, tmp_path: Path):
        stored = tmp_path / "tfds" / "c4" / "en" / "3.1.0"
        for path in list(stored.glob("*.array_record-*")):
            path.rename(str(path).replace(".array_record-", ".riegeli-"))
        edit_info(stored, fileFormat="riegeli")
        with pytest.raises(UserError, match=r"stored as riegeli; allowed: array_record, tfrecord"):
            sources.prepare(c4, tmp_path / "root")


class TestManifest:
    def test_docs(
        self,
        docs_params: DataParams,
        docs_folder: Path,
        train_documents: Documents,
        tokenizer_path: Path,
    ):
        found = sources.manifest(docs_params, docs_folder, tokenizer_path)
        train = found["splits"]["train"]
        assert found["name"] == "docs"
        assert train["documents"] == len(train_documents)
        assert train["bytes"] == sum(len(text.encode()) for text in train_documents)
        digest = hashlib.sha256(tokenizer_path.read_bytes()).hexdigest()
        assert found["tokenizer"] == {"sha256": digest, "vocab_size": 512}
        assert json.loads(json.dumps(found)) == found

    def test_the_same_text_elsewhere_has_the_same_manifest(
        self, text_params: DataParams, tokenizer_path: Path, tmp_path: Path
    ):
        first = sources.prepare(text_params, tmp_path / "one")
        found = sources.manifest(text_params, first, tokenizer_path)
        (tmp_path / "moved").mkdir()
        for name in ("a.txt", "b.jsonl"):
            (tmp_path / name).rename(tmp_path / "moved" / name)
        moved = text_params.model_copy(update={"files": (f"{tmp_path}/moved/*",)})
        second = sources.prepare(moved, tmp_path / "two")
        assert sources.manifest(moved, second, tokenizer_path) == found
        assert str(tmp_path) not in json.dumps(found)

    def test_other_text_has_another_manifest(
        self, text_params: DataParams, tokenizer_path: Path, tmp_path: Path
    ):
        def splits() -> dict:
            folder = sources.prepare(text_params, tmp_path / "root")
            return sources.manifest(text_params, folder, tokenizer_path)["splits"]

        before = splits()
        changed = (tmp_path / "a.txt").read_text().replace("few", "FEW")
        (tmp_path / "a.txt").write_text(changed)
        assert splits()["train"]["sha256"] != before["train"]["sha256"]

    def test_other_borders_are_other_content(self):
        contents = [
            sources._content(Documents([{"text": text} for text in texts]))
            for texts in ([b"ab", b"c"], [b"a", b"bc"])
        ]
        assert [content["bytes"] for content in contents] == [3, 3]
        assert contents[0]["sha256"] != contents[1]["sha256"]

    def test_tfds(self, c4: DataParams, tokenizer_path: Path, tmp_path: Path):
        found = sources.manifest(c4, sources.prepare(c4, tmp_path / "root"), tokenizer_path)
        assert (found["name"], found["version"]) == ("c4/en", "3.1.0")
        assert {k: v["documents"] for k, v in found["splits"].items()} == {
            "train": 20,
            "heldout": 10,
        }
        assert str(tmp_path) not in json.dumps(found)
