"""A variant may draw a number of samples of its own, which changes neither its training nor its first samples."""

import numpy as np
from diffusion_project import small_params, write_params

from stages import sample, train
from stages.files.images import read_images
from stages.protocol import load_tree, run_plain

VARIANT = "closed-conditioning"


def test_a_variants_own_count_overrides_the_common_one(project):
    run_plain("train", VARIANT)
    run_plain("sample", VARIANT)
    common = read_images(f"data/sample/{VARIANT}/samples.arrow").images
    score = (project / f"data/train/{VARIANT}/score.json").read_bytes()
    tree = small_params()
    tree["variants"][VARIANT]["count"] = 31
    write_params(tree)
    run_plain("train", VARIANT)
    run_plain("sample", VARIANT)
    own = read_images(f"data/sample/{VARIANT}/samples.arrow").images
    assert (len(common), len(own)) == (23, 31)
    np.testing.assert_array_equal(own[:20], common[:20])  # whole batches of both
    assert (project / f"data/train/{VARIANT}/score.json").read_bytes() == score


def test_a_count_trains_no_network_again_and_redraws_no_sample(project):
    def plans():
        tree, name = load_tree("params.yaml"), "net-conditioning"
        trained = train.plan(train.Params.from_tree(tree, name))[0]
        drawn = sample.plan(sample.Params.from_tree(tree, name))
        return trained.settings, [shard.settings for shard in drawn if shard.task == "samples"]

    run_plain("train", "net-conditioning")
    before = plans()
    tree = small_params()
    tree["variants"]["net-conditioning"]["count"] = 40
    write_params(tree)
    after = plans()
    assert before[0] == after[0]
    assert "count" not in str(after[1])
    assert max(settings["stop"] for settings in after[1]) == 40
