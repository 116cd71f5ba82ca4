from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekit.errors import IntegrityError, ModelError, PackageError, UsageError
from edgekit.export.declared import Declared
from edgekit.export.stages import export_stages, parse_link
from edgekit.package import Package
from edgekit.verify import verify
from tests.data import ROOT
from tests.stages import layer, pair, two_layers

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_two_models_become_one_package_of_two(tmp_path: Path) -> None:
    package = pair(tmp_path)
    assert [str(s) for s in package.manifest.input_specs] == ["x: float32[batch, 8]"]
    assert [str(s) for s in package.manifest.output_specs] == ["y: float32[batch, 4]"]
    assert package.stage_names == ("encoder", "decoder")
    assert {p.name for p in package.path.iterdir()} == {"manifest.json", "samples.npz", "encoder.edge", "decoder.edge"}
    samples = package.samples()
    np.testing.assert_allclose(samples.outputs["y"], two_layers(samples.inputs["x"]), rtol=1e-4, atol=1e-5)
    assert Package.open(package.path).manifest == package.manifest
    assert b'"stages"' not in (package.path / "encoder.edge" / "manifest.json").read_bytes()  # as before there were any
    assert verify(package).passed


def test_what_flows_through_a_stage_is_its_samples(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((7, 8)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    package = pair(tmp_path, samples=tmp_path / "in.npz")
    (_, first), (_, second) = package.stages()
    np.testing.assert_array_equal(first.samples().inputs["x"], x)
    np.testing.assert_array_equal(first.samples().outputs["h"], second.samples().inputs["h"])
    assert second.manifest.samples == package.manifest.samples
    assert second.manifest.samples is not None
    assert (second.manifest.samples.count, second.manifest.samples.source) == (7, "file")
    assert verify(second).passed


def test_a_link_joins_other_names(tmp_path: Path) -> None:
    package = pair(tmp_path, names="latent input", links=("decoder.input=encoder.latent",))
    assert package.stages()[1][0].inputs == {"input": "latent"}
    samples = package.samples()
    np.testing.assert_allclose(samples.outputs["y"], two_layers(samples.inputs["x"]), rtol=1e-4, atol=1e-5)


def test_outputs_of_one_name_are_told_apart_by_their_stage(tmp_path: Path) -> None:
    sources = [layer(tmp_path / "a.onnx", "input", "out", 8, 16), layer(tmp_path / "b.onnx", "out", "input", 16, 4)]
    package = export_stages(sources, output=tmp_path / "p.edge")
    assert [t.name for t in package.manifest.outputs] == ["b.input"]


def test_one_stage_may_feed_several(tmp_path: Path) -> None:
    body, one = layer(tmp_path / "a.onnx", "x", "h", 8, 8), layer(tmp_path / "b.onnx", "h", "y", 8, 4)
    other = layer(tmp_path / "c.onnx", "h", "z", 8, 2)
    package = export_stages([body, one, other], output=tmp_path / "p.edge", declared=Declared(name="heads"))
    assert package.name == "heads"
    assert [t.name for t in package.manifest.inputs] == ["x"]
    assert [t.name for t in package.manifest.outputs] == ["y", "z"]
    assert verify(package).passed
    alone = layer(tmp_path / "c.onnx", "x", "z", 8, 2)
    with pytest.raises(UsageError, match="Stage 'c' has no tensor in common with another stage: it gives z"):
        export_stages([body, one, alone], output=tmp_path / "q.edge")


@pytest.mark.parametrize(
    ("names", "links", "error", "words"),
    [
        (
            "h k",
            (),
            UsageError,
            r"'encoder' has no tensor in common with another stage: it gives h\..*--link decoder.k=h",
        ),
        (
            "h x",
            (),
            ModelError,
            r"'decoder' takes x: float32\[batch, 16\], but the package takes x: .*--link decoder.x=h",
        ),
        ("h k", ("decoder.k=q",), UsageError, "no stage before 'decoder' gives it; there is x, h"),
        ("h k", ("decoder.q=h",), UsageError, "names input 'q' of stage 'decoder'; it has k"),
        ("h k", ("head.k=h",), UsageError, "names stage 'head'; stages are encoder, decoder"),
    ],
)
def test_what_does_not_fit_is_named_with_the_fix_and_leaves_nothing(
    tmp_path: Path, names: str, links: tuple[str, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        pair(tmp_path, names=names, links=links)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["decoder.onnx", "encoder.onnx"]


def test_stages_need_names_of_their_own(tmp_path: Path) -> None:
    source = layer(tmp_path / "a.onnx", "x", "x1", 8, 8)
    with pytest.raises(UsageError, match="Two stages are named 'a'. Name them yourself: first="):
        export_stages([source, source], output=tmp_path / "p.edge")
    with pytest.raises(UsageError, match="two models or more"):
        export_stages([source], output=tmp_path / "p.edge")
    package = export_stages(
        [f"one={source}", f"two={source}"], output=tmp_path / "p.edge", links=[parse_link("two.x=one.x1")]
    )
    assert package.stage_names == ("one", "two")
    assert [t.name for t in package.manifest.outputs] == ["two.x1"]


@pytest.mark.parametrize("text", ["", "a", "a.b", "a=b", ".b=c", "a.=c", "a.b="])
def test_a_link_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected STAGE\.INPUT=TENSOR"):
        parse_link(text)


def test_a_stage_may_get_variants_but_not_become_another_model(tmp_path: Path) -> None:
    package = pair(tmp_path)
    stage = package.stages()[0][1]
    with stage.edit() as writer:
        writer.path("copy.onnx").write_bytes(stage.file("fp32.onnx").read_bytes())
        writer.put(writer.variant_of("copy.onnx", id="copy", precision="fp32", format="onnx", target="any"))
        writer.commit()
    assert [v.id for v in Package.open(package.path).stages()[0][1].manifest.variants] == ["fp32", "copy"]
    other = export_stages(
        [layer(tmp_path / "encoder.onnx", "x", "h", 8, 32), layer(tmp_path / "decoder.onnx", "h", "y", 32, 4)],
        output=tmp_path / "other.edge",
    )
    (other.path / "encoder.edge").rename(tmp_path / "encoder.edge")
    (package.path / "encoder.edge").rename(tmp_path / "old.edge")
    (tmp_path / "encoder.edge").rename(package.path / "encoder.edge")
    with pytest.raises(IntegrityError, match="Stage 'encoder' of 'pair.edge' is not the model that was exported"):
        package.stages()


def test_the_whole_is_no_variant_and_says_where_they_are(tmp_path: Path) -> None:
    package = pair(tmp_path)
    for attempt in (lambda: package.reference, package.edit, lambda: package.variant("fp32")):
        with pytest.raises(UsageError, match=r"made of stages \(encoder, decoder\).*pair\.edge/encoder\.edge"):
            attempt()


def test_recipes_can_be_stages(tmp_path: Path) -> None:
    """A PyTorch recipe and an .onnx file behind it: the recipe's samples flow into the file's."""
    recipe = ROOT / "models" / "digits_cnn.py"
    probe = Package.open(export_digits(tmp_path, recipe))
    classes = probe.manifest.outputs[0]
    head = layer(tmp_path / "head.onnx", classes.name, "y", 10, 2)
    package = export_stages([recipe, head], output=tmp_path / "p.edge")
    assert package.stage_names == ("digits_cnn", "head")
    assert package.manifest.samples is not None
    assert package.manifest.samples.source == "recipe"
    assert package.manifest.preprocess.keys() == {probe.manifest.inputs[0].name}
    assert verify(package).passed


def test_a_state_that_a_later_stage_takes_stays_an_output(tmp_path: Path) -> None:
    layer(tmp_path / "step.onnx", "x", "h", 8, 8)
    recipe = tmp_path / "step.py"
    recipe.write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from edgekit import ModelSpec, TensorSpec\n"
        "SPEC = ModelSpec(name='step', build=lambda: Path(__file__).with_suffix('.onnx'), states={'x': 'h'},\n"
        "                 inputs=(TensorSpec('x', 'float32', ('batch', 8)),),\n"
        "                 samples=lambda n, seed: {'x': np.ones((n, 8), np.float32)})\n"
    )
    package = export_stages([recipe, layer(tmp_path / "head.onnx", "h", "y", 8, 2)], output=tmp_path / "p.edge")
    assert package.manifest.states == {"x": "h"}
    assert [t.name for t in package.manifest.outputs] == ["h", "y"]
    assert verify(package).passed


def export_digits(folder: Path, recipe: Path) -> Path:
    from edgekit.export.build import export

    return export(recipe, output=folder / "digits.edge").path


def test_the_command_line(edgekit: Run, tmp_path: Path) -> None:
    layer(tmp_path / "a.onnx", "x", "h", 8, 16)
    layer(tmp_path / "b.onnx", "g", "y", 16, 4)
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(2).standard_normal((9, 8)).astype(np.float32))
    command = ("export", "a.onnx", "b.onnx", "-o", "p.edge", "--link", "b.g=a.h", "--samples", "in.npz")
    done = edgekit(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "g = h" in done.stdout
    assert "edgekit quantize p.edge/a.edge" in done.stdout
    done = edgekit("quantize", "p.edge/a.edge", "--precision", "fp16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = edgekit("verify", "p.edge", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["a/fp32", "a/fp16", "b/fp32", "all"]
    done = edgekit("inspect", "p.edge", cwd=tmp_path)
    assert "every SHA-256 matches" in done.stdout
    for args, words in (
        (("export", "a.onnx", "b.onnx"), "name it with -o X.edge"),
        (("export", "a.onnx", "--link", "b.g=h", "-o", "q.edge"), "there is one source"),
        (("quantize", "p.edge", "--precision", "fp16"), "Name one of them: p.edge/a.edge"),
        (("compile", "p.edge", "--target", "rtx-4090"), "'b.edge' has no variant that a GPU gains from"),
        (("compile", "p.edge", "--target", "rtx-4090", "--shapes", "x:1x8"), "edgekit compile p.edge/a.edge --shapes"),
    ):
        done = edgekit(*args, cwd=tmp_path)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_every_stage_is_compiled(edgekit: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="needs TensorRT-RTX: pip install 'edgekit[rtx]'")
    np.savez(tmp_path / "in.npz", x=np.random.default_rng(2).standard_normal((9, 8)).astype(np.float32))
    package = pair(tmp_path, samples=tmp_path / "in.npz")
    done = edgekit("compile", package.path, "--target", "sm_86", "--variant", "fp32", "--json")
    assert done.returncode == 0, done.stderr
    engines = json.loads(done.stdout)["engines"]
    assert [e["id"].partition("-")[0] for e in engines] == ["encoder/fp32", "decoder/fp32"]
    for _, own in Package.open(package.path).stages():
        assert [v.format for v in own.manifest.variants] == ["onnx", "tensorrt-rtx"]
    done = edgekit("compile", package.path, "--target", "sm_75", "--variant", "fp32", "--plan")
    assert done.returncode == 1
    assert "sm_75 (encoder/fp32), sm_75 (decoder/fp32)" in done.stdout


def test_a_stage_cannot_lie_outside_its_package(tmp_path: Path) -> None:
    package = pair(tmp_path)
    found = package.manifest.stages
    assert isinstance(found, tuple)
    for folder in ("../encoder.edge", "/tmp", ""):
        moved = msgspec.structs.replace(found[0], package=folder)
        manifest = msgspec.structs.replace(package.manifest, stages=(moved, found[1]))
        with pytest.raises(PackageError, match="leaves the package"):
            Package(package.path, manifest).stages()
