"""NCSN++ against diffusers' implementation with the same weights: the whole network, its resampling, its embedding."""

import shutil
import sys

import pytest
import torch

from stages.diffusion import export
from stages.diffusion.export import obstacles, to_diffusers, to_pipeline
from stages.diffusion.network import NCSNpp, Resample
from stages.diffusion.parameters import NetworkParams, NoiseParams
from stages.errors import InputError
from stages.files.artifacts import read_json, write_json
from stages.files.tensors import save_tensors

diffusers = pytest.importorskip("diffusers")

NOISE = NoiseParams(sigma_min=0.01, sigma_max=50.0)
PARAMS = NetworkParams(
    channels=32,
    multipliers=[1, 2, 2],
    blocks=2,
    attention=[],
    patch=1,
    dropout=0.1,
    embedding="fourier",
    fir=True,
    progressive_input=False,
    amplitude="raw",
    skip_above=None,
)


def network(conditioned=True, seed=1, **changes):
    """A network with every weight of a size at which a difference shows."""
    torch.manual_seed(0)
    made = NCSNpp(PARAMS.model_copy(update=changes), 3, 16, conditioned)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return made.eval()


def trained_variant(place, checkpoint):
    """data/train/net with the networks of steps 5 and 9, and data/choose/net, where step 5 is the best."""
    trained, chosen = place / "data" / "train" / "net", place / "data" / "choose" / "net"
    spec = {"score": "network", "form": "conditioning"}
    params = network(blocks=1).params.model_dump()
    score = {"variant": "net", "spec": spec, "noise": NOISE.model_dump(), "network": params}
    write_json(trained / "score.json", score)
    for step, seed in ((5, 5), (9, 1)):
        about = {"score": score, "image_shape": [3, 16, 16]}
        save_tensors(trained / f"{step}.safetensors", network(blocks=1, seed=seed).state_dict(), about)
    runs = [{"seed": 1, "step": step, "weights": f"{step}.safetensors"} for step in (5, 9)]
    write_json(trained / "runs.json", {"runs": runs})
    write_json(chosen / "choice.json", {"checkpoint": checkpoint})
    if checkpoint == "best_fid":
        write_json(chosen / "runs.json", {"runs": [{**runs[0], "weights": "../../train/net/5.safetensors"}]})
    return trained


@pytest.mark.parametrize(
    ("conditioned", "changes"),
    [
        (True, {}),
        (False, {}),
        (True, {"channels": 128, "multipliers": [1, 1], "blocks": 1, "attention": [8]}),
        (True, {"channels": 128, "multipliers": [1, 2], "blocks": 1, "attention": [16, 8]}),
    ],
)
def test_the_same_weights_give_the_same_score_as_diffusers(conditioned, changes):
    """Blocks, FIR resampling, attention, Fourier features and skips, all at once: F/sigma, float32 rounding apart."""
    ours = network(conditioned, **changes)
    theirs = to_diffusers(ours)
    x, sigma = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2)), torch.tensor([0.02, 1.0, 40.0])
    with torch.no_grad():
        wanted = theirs(x, sigma).sample * sigma[:, None, None, None]
        got = ours(x, sigma if conditioned else None)
    assert float(got.std()) > 0.1
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(got.std()))


def test_fir_resampling_is_that_of_diffusers():
    from diffusers.models.downsampling import downsample_2d
    from diffusers.models.upsampling import upsample_2d

    x = torch.randn(2, 5, 12, 12)
    torch.testing.assert_close(Resample("down", True)(x), downsample_2d(x, kernel=(1, 3, 3, 1)))
    torch.testing.assert_close(Resample("up", True)(x), upsample_2d(x, kernel=(1, 3, 3, 1)))


@pytest.mark.parametrize("conditioned", [True, False])
def test_residual_progressive_input_is_the_published_merge(conditioned):
    """(pyramid, blurred at full resolution and convolved 3x3 with stride 2, + features)/sqrt 2 goes on as features and
    as pyramid: NCSN++'s `Downsample` with FIR and convolution, which is diffusers' FirDownsample2D.

    Written out with diffusers' layer, since its UNet2DModel has no such path.
    """
    from diffusers.models.downsampling import FirDownsample2D

    def published(layer, x):
        theirs = FirDownsample2D(x.shape[1], layer.out_channels, use_conv=True)
        theirs.Conv2d_0.weight, theirs.Conv2d_0.bias = layer.weight, layer.bias
        return theirs(x)

    ours = network(conditioned, progressive_input=True, multipliers=[1, 1, 2], blocks=1)
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        e, pyramid = ours.embed(sigma) if conditioned else None, 2 * x - 1
        skips, h = [ours.stem(pyramid)], ours.stem(pyramid)
        for stage, level in enumerate(ours.down):
            h = level[0][0](h, e)
            skips.append(h)
            if stage < 2:
                h = ours.reduce[stage](h, e)
                merged = published(ours.enter[stage][1], pyramid) + h
                h = pyramid = merged / 2**0.5
                skips.append(h)
        got, got_skips = ours._encode(2 * x - 1, e)
    torch.testing.assert_close(got, h)
    for a, b in zip(got_skips, skips, strict=True):
        torch.testing.assert_close(a, b)


def test_positional_embedding_is_that_of_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    made = network(embedding="positional").embed
    level = torch.tensor([0.0, 17.0, 500.0, 999.0])
    sigma = 0.01 * (50 / 0.01) ** (level.double() / 999)
    wanted = made.layers(get_timestep_embedding(level, PARAMS.channels, downscale_freq_shift=1))
    torch.testing.assert_close(made(sigma.float()), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"patch": 2}, "train.network.patch 2"),
        ({"fir": False}, "train.network.fir"),
        ({"progressive_input": True}, "train.network.progressive_input"),
        ({"amplitude": "normalised"}, "train.network.amplitude normalised"),
        ({"skip_above": 2.0}, "train.network.skip_above 2.0"),
        ({"embedding": "positional"}, "train.network.embedding positional"),
        ({"attention": [16]}, "train.network.channels 32"),
        ({"channels": 68}, "train.network.channels 68"),
    ],
)
def test_what_diffusers_cannot_hold_is_refused_by_its_key(changes, key):
    made = network(**changes)
    with pytest.raises(InputError, match=f"cannot hold this network: {key}"):
        to_diffusers(made)
    assert obstacles(network()) == []


def test_grey_images_are_refused():
    made = NCSNpp(PARAMS, 1, 16, True)
    with pytest.raises(InputError, match=r"ingest\.channels 1 \(3 needed\)"):
        to_diffusers(made)


def test_pipeline_folder_is_read_and_sampled_by_diffusers(tmp_path):
    to_pipeline(network(blocks=1), NOISE).save_pretrained(tmp_path / "pipeline")
    read = diffusers.ScoreSdeVePipeline.from_pretrained(tmp_path / "pipeline")
    read.set_progress_bar_config(disable=True)
    x, sigma = torch.randn(1, 3, 16, 16), torch.tensor([0.7])
    with torch.no_grad():
        torch.testing.assert_close(read.unet(x, sigma).sample, to_diffusers(network(blocks=1))(x, sigma).sample)
    assert read.scheduler.config.sigma_max == 50.0
    images = read(batch_size=2, num_inference_steps=3, output_type="numpy").images
    assert images.shape == (2, 16, 16, 3)


def test_an_export_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    """Half a pipeline would be read as one, and refused by the next export as existing."""
    trained, written = trained_variant(tmp_path, "last"), []
    whole = diffusers.ScoreSdeVePipeline.save_pretrained

    def full_disk(self, folder, **options):
        whole(self, folder, **options)
        written.append(folder)
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patched:
        patched.setattr(diffusers.ScoreSdeVePipeline, "save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space"):
            export.export(trained, tmp_path / "out")
    assert written
    assert sorted(tmp_path.iterdir()) == before
    export.export(trained, tmp_path / "new" / "out")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"out"}
    assert (tmp_path / "new" / "out" / "model_index.json").stat().st_mode & 0o044


def weights_of(folder):
    return diffusers.UNet2DModel.from_pretrained(folder / "unet").conv_in.weight


def test_command_writes_the_folder_of_a_trained_variant_and_never_over_another(tmp_path, monkeypatch, capsys):
    trained = trained_variant(tmp_path, "last")
    monkeypatch.setattr(sys, "argv", ["export", str(trained), str(tmp_path / "out")])
    export.main()
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: seed 1, step 9\n"
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "out" / "unet")
    x, sigma = torch.randn(1, 3, 16, 16), torch.tensor([0.7])
    with torch.no_grad():
        torch.testing.assert_close(unet(x, sigma).sample, to_diffusers(network(blocks=1))(x, sigma).sample)
    with pytest.raises(SystemExit) as stopped:
        export.main()
    assert stopped.value.code == 2
    assert f"error: {tmp_path / 'out'} already exists" in capsys.readouterr().err


def test_the_network_that_stage_choose_chose_is_exported(tmp_path):
    """With sample.checkpoint best_fid it is the one of step 5, which is sampled, and not the end of the training."""
    exported = export.export(trained_variant(tmp_path, "best_fid"), tmp_path / "out")
    assert exported.key == {"seed": 1, "step": 5}
    torch.testing.assert_close(weights_of(tmp_path / "out"), network(blocks=1, seed=5).stem.weight, rtol=0, atol=0)


def test_a_choice_of_another_training_and_none_at_all_are_refused(tmp_path):
    trained = trained_variant(tmp_path, "best_fid")
    runs = trained / "runs.json"
    write_json(runs, {"runs": [run for run in read_json(runs)["runs"] if run["step"] != 5]})
    with pytest.raises(InputError, match=r"choose/net/runs\.json names step 5 of seed 1.*: rerun its choose stage"):
        export.export(trained, tmp_path / "out")
    shutil.rmtree(tmp_path / "data" / "choose")
    with pytest.raises(InputError, match=r"choose/net/choice\.json"):
        export.export(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()
