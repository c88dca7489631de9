"""Export of a trained network as a diffusers pipeline folder, if diffusers has the same blocks.

    python -m stages.diffusion.export data/train/VARIANT FOLDER

The network is the one that is sampled: the end of the first seed's training, or what stage choose chose.

diffusers' UNet2DModel has NCSN++'s BigGAN blocks, FIR resampling, attention and Fourier features (SkipDownBlock2D and
its relatives). A network of these is copied weight by weight and gives the same scores. UNet2DModel lacks:

- the residual progressive input of the published CIFAR-10 network (its own skip path adds a 1x1 convolution of the
  image to the features and has no pyramid that continues downwards), and the plain nearest/average resampling;
- patches, the division by the amplitude, grey images (its skip convolutions have 3 channels) and the level's index
  as positional embedding (its pipeline passes sigma);
- group sizes other than min(C/4, 32), and other than 32 in the attention outside the middle.

A network that needs one of these, or is class-conditional, is refused, naming its key in params.yaml. A noise-blind
network is exported with embedding projections of zero: F ignores sigma, and UNet2DModel divides F by sigma, as the
score requires (METHODS §4).
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from stages.diffusion.model import load_network
from stages.diffusion.network import Attention, NCSNpp, ResidualBlock
from stages.diffusion.parameters import NoiseParams
from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.paths import DATA, choice_of, chosen_runs_of
from stages.files.runs import Run, read_runs, reference

if TYPE_CHECKING:
    from diffusers import ScoreSdeVePipeline, UNet2DModel


def obstacles(network: NCSNpp) -> list[str]:
    """Return the settings of a network that UNet2DModel cannot express, by their keys in params.yaml."""
    p = network.params
    found = [
        (network.image_channels != 3, f"ingest.channels {network.image_channels} (3 needed)"),
        (p.patch != 1, f"train.network.patch {p.patch} (1 needed)"),
        (not p.fir, "train.network.fir false (true needed)"),
        (p.progressive_input, "train.network.progressive_input true (false needed)"),
        (p.amplitude != "raw", f"train.network.amplitude {p.amplitude} (raw needed)"),
        (p.skip_above is not None, f"train.network.skip_above {p.skip_above} (null needed)"),
        (network.classes is not None, "conditioning: class (remove it)"),
        (network.noise_conditioning and p.embedding != "fourier", f"train.network.embedding {p.embedding}"),
        (_other_groups(network), f"train.network.channels {p.channels} (its norms need groups that diffusers lacks)"),
    ]
    return [words for wrong, words in found if wrong]


def _other_groups(network: NCSNpp) -> bool:
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    if any(norm.num_groups != min(norm.num_channels // 4, 32) for norm in norms):
        return True
    levels = [*(pair[1] for level in network.down for pair in level), *(level[-1] for level in network.up)]
    beside = any(isinstance(module, Attention) and module.norm.num_groups != 32 for module in levels)
    return beside or any(
        isinstance(level[-1], Attention) and block.norm_in.num_groups != 32
        for level in network.up
        for block in level[:-1]
    )


def to_diffusers(network: NCSNpp) -> "UNet2DModel":
    """Return a UNet2DModel whose output at (x, sigma) is the score F/sigma; InputError where `obstacles` finds some."""
    wrong = obstacles(network)
    if wrong:
        raise InputError(f"diffusers' UNet2DModel cannot hold this network: {'; '.join(wrong)}")
    unet = _empty(network)
    with torch.no_grad():
        _copy_all(network, unet)
    return unet.eval()


def _empty(network: NCSNpp) -> "UNet2DModel":
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise InputError("the export needs the package diffusers: pip install diffusers") from error
    p = network.params
    attends = [network.resolution // 2**stage in p.attention for stage in range(len(p.multipliers))]
    down = ["AttnSkipDownBlock2D" if attend else "SkipDownBlock2D" for attend in attends]
    up = ["AttnSkipUpBlock2D" if attend else "SkipUpBlock2D" for attend in reversed(attends)]
    return UNet2DModel(
        sample_size=network.resolution,
        center_input_sample=True,  # 2x - 1
        time_embedding_type="fourier",
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=tuple(p.channels * multiplier for multiplier in p.multipliers),
        layers_per_block=p.blocks,
        mid_block_scale_factor=2**0.5,
        dropout=p.dropout,
        attention_head_dim=None,
        norm_num_groups=None,
        norm_eps=1e-6,
    )


def _copy_all(network: NCSNpp, unet: "UNet2DModel") -> None:
    for parameter in unet.parameters():
        parameter.zero_()  # layers without counterpart (skip path, a blind network's projections) add nothing
    if network.embed is not None:
        first, _, second = network.embed.layers
        unet.time_proj.weight.copy_(network.embed.frequencies)
        _copy(first, unet.time_embedding.linear_1)
        _copy(second, unet.time_embedding.linear_2)
    _copy(network.stem, unet.conv_in)
    for stage, level in enumerate(network.down):
        theirs = unet.down_blocks[stage]
        for n, (block, attention) in enumerate(level):
            _copy_block(block, theirs.resnets[n])
            if isinstance(attention, Attention):
                _copy_attention(attention, theirs.attentions[n])
        if stage < len(network.reduce):
            _copy_block(network.reduce[stage], theirs.resnet_down)
    _copy_block(network.middle[0], unet.mid_block.resnets[0])
    _copy_attention(network.middle[1], unet.mid_block.attentions[0])
    _copy_block(network.middle[2], unet.mid_block.resnets[1])
    for stage, level in enumerate(network.up):
        theirs = unet.up_blocks[stage]
        for n, block in enumerate(level[:-1]):
            _copy_block(block, theirs.resnets[n])
        if isinstance(level[-1], Attention):
            _copy_attention(level[-1], theirs.attentions[0])
        if stage < len(network.enlarge):
            _copy_block(network.enlarge[stage], theirs.resnet_up)
            theirs.skip_norm.weight.fill_(1.0)
    _copy(network.norm, unet.conv_norm_out)
    _copy(network.head, unet.conv_out)


def _set(theirs: nn.Module, weight: Tensor, bias: Tensor) -> None:
    theirs.weight.copy_(weight)
    theirs.bias.copy_(bias)


def _copy(ours: nn.Module, theirs: nn.Module) -> None:
    _set(theirs, ours.weight, ours.bias)


def _copy_block(ours: ResidualBlock, theirs: nn.Module) -> None:
    pairs = [("norm_in", "norm1"), ("conv_in", "conv1"), ("norm_out", "norm2"), ("conv_out", "conv2")]
    pairs += [("project", "time_emb_proj")] if ours.project is not None else []
    pairs += [("skip", "conv_shortcut")] if ours.skip is not None else []
    for mine, other in pairs:
        _copy(getattr(ours, mine), getattr(theirs, other))


def _copy_attention(ours: Attention, theirs: nn.Module) -> None:
    _copy(ours.norm, theirs.group_norm)
    layers = (
        (ours.query, theirs.to_q),
        (ours.key, theirs.to_k),
        (ours.value, theirs.to_v),
        (ours.out, theirs.to_out[0]),
    )
    for mine, other in layers:
        _set(other, mine.weight.flatten(1), mine.bias)


def to_pipeline(network: NCSNpp, noise: NoiseParams, snr: float = 0.16) -> "ScoreSdeVePipeline":
    """Return the network with diffusers' predictor-corrector sampler of the VE-SDE at the same noise levels."""
    unet = to_diffusers(network)
    from diffusers import ScoreSdeVePipeline, ScoreSdeVeScheduler

    return ScoreSdeVePipeline(
        unet=unet, scheduler=ScoreSdeVeScheduler(snr=snr, sigma_min=noise.sigma_min, sigma_max=noise.sigma_max)
    )


def sampled_run(trained: Path) -> Run:
    """Return the run of data/train/VARIANT whose samples are reported.

    The end of the first seed's training, or with sample.checkpoint `best_fid` what stage choose wrote beside it, in
    data/choose/VARIANT. Raises InputError where nothing says which, or the choice is of another training.
    """
    data, variant = trained.absolute().parents[1], trained.absolute().name
    choice, chosen = (data / path.relative_to(DATA) for path in (choice_of(variant), chosen_runs_of(variant)))
    last = read_runs(trained / "runs.json")
    if read_json(choice)["checkpoint"] == "last":
        return reference(last)
    run = reference(read_runs(chosen))
    if run.key not in [each.key for each in last]:
        raise InputError(
            f"{chosen} names step {run.step} of seed {run.seed}, which {trained} does not have: rerun its choose stage"
        )
    return run


def export(trained: Path, folder: Path) -> Run:
    """Write the pipeline folder of data/train/VARIANT, whole or not at all; an existing folder is refused.

    It holds the network whose samples the report shows (`sampled_run`), which is returned.
    """
    if folder.exists():
        raise InputError(f"{folder} already exists: name another folder, or remove it")
    description = read_json(trained / "score.json")
    if description["spec"]["score"] != "network":
        raise InputError(f"{trained} is a closed-form score and has no network: name a trained variant")
    run = sampled_run(trained)
    network = load_network(description, run.weights)
    pipeline = to_pipeline(network, NoiseParams(**description["noise"]))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        pipeline.save_pretrained(Path(place) / folder.name)
        (Path(place) / folder.name).rename(folder)
    return run


def main() -> None:
    """Run the command line; wrong input gives one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m stages.diffusion.export", description=__doc__.splitlines()[0])
    parser.add_argument("trained", type=Path, help="data/train/VARIANT")
    parser.add_argument("folder", type=Path, help="the new pipeline folder")
    arguments = parser.parse_args()
    try:
        run = export(arguments.trained, arguments.folder)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{arguments.folder}: seed {run.seed}, step {run.step}")


if __name__ == "__main__":
    main()
