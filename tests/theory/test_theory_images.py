"""The blocks that need images: Jacobian and collapse on cases worked by hand, and the images that verify reads."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_verify import BLOCKS, section

from stages import verify
from stages.diffusion import scores as empirical_score
from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.images import image_table, write_images
from stages.images.sources.open import open_source
from stages.images.subset import read_subset, subset_rows
from stages.theory import collapse, jacobian, product

JACOBIAN = {
    "images": 20, "points": 6, "noise": 0.001, "scores": ["conditioning", 1.0, 2.0, "infinity"], "tolerance": 1e-4,
    "iterations": 100, "cifar10": False,
}  # fmt: skip
COLLAPSE = {
    "images": 20, "trajectories": 3, "levels": 40, "largest": 20.0, "smallest": 0.01,
    "scores": ["conditioning", 1.0, 1000.0], "cuts": [0.5, 0.9], "shown": 4, "cifar10": False,
}  # fmt: skip


def pictures(count: int = 20, side: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 1), dtype=np.uint8)


def pair(temperature: product.Form, dimension: int = 4, gap: float = 2.0) -> jacobian.Linearization:
    """Two centres at ±gap/2 on the first axis and the point between them: weights ½, ½ at every temperature."""
    centres = np.zeros((2, dimension))
    centres[:, 0] = -gap / 2, gap / 2
    return jacobian.linearize(np.zeros((1, dimension)), centres, temperature)


def test_jacobian_between_two_images_by_hand():
    # d = 4, r = 1: p = 2, g = ∓2 e₁, S = 0, λ̄ = 2: J = (1/T) · 4 e₁e₁ᵀ − 2 I
    for temperature, first in ((1.0, 2.0), (2.0, 0.0), (4.0, -1.0), ("infinity", -2.0)):
        found = pair(temperature)
        assert found.mean_precision == pytest.approx([2.0])
        assert found.score == pytest.approx(np.zeros((1, 4)))
        assert found.dense()[0] == pytest.approx(np.diag([first, -2, -2, -2]), abs=1e-12)


def test_conditioning_jacobian_between_two_images_by_hand():
    # σ² = r²/d = ¼, p = 4, g = ∓4 e₁: J = 16 e₁e₁ᵀ − 4 I
    assert pair("conditioning").dense()[0] == pytest.approx(np.diag([12.0, -4, -4, -4]))


def test_differentiating_the_level_adds_its_term_by_hand():
    # (2/(d−2)) Σ w g gᵀ = 1 · 4 e₁e₁ᵀ
    centres = np.array([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]])
    found = jacobian.linearize(np.zeros((1, 4)), centres, 1.0, differentiated=True)
    assert found.dense()[0] == pytest.approx(np.diag([6.0, -2, -2, -2]))


@pytest.mark.parametrize("score", ["conditioning", 1.0, 7.0, "infinity"])
def test_applying_the_jacobian_is_multiplying_by_it(score):
    generator = np.random.default_rng(1)
    points, vectors = generator.random((2, 3, 6))
    found = jacobian.linearize(points, generator.random((9, 6)), score, differentiated=score == 7.0)
    assert found.apply(vectors) == pytest.approx(np.einsum("bde,be->bd", found.dense(), vectors), abs=1e-12)


@pytest.mark.parametrize("score", [1.0, 7.0, "infinity"])
def test_the_differentiated_jacobian_is_the_derivative_of_the_pipelines_score(score):
    """By central differences, so that neither automatic differentiation nor the formula is trusted."""
    generator = np.random.default_rng(2)
    point, images = generator.random(6), generator.random((9, 6))
    centres = empirical_score.make_centres(torch.from_numpy(images))
    temperature = math.inf if score == "infinity" else score

    def evaluate(x: np.ndarray) -> np.ndarray:
        return empirical_score.unconditioning(centres, torch.from_numpy(x[None]), temperature)[0].numpy()

    step = 1e-5
    numeric = np.stack([(evaluate(point + step * e) - evaluate(point - step * e)) / (2 * step) for e in np.eye(6)], 1)
    found = jacobian.linearize(point[None], images, score, differentiated=True).dense()[0]
    assert found == pytest.approx(numeric, abs=1e-6 * np.abs(numeric).max())
    assert jacobian.score_jacobian(point[None], images, score, True)[0] == pytest.approx(found, abs=1e-9)
    frozen = jacobian.linearize(point[None], images, score).dense()[0]
    assert jacobian.score_jacobian(point[None], images, score, False)[0] == pytest.approx(frozen, abs=1e-9)
    assert frozen != pytest.approx(numeric, abs=1e-3 * np.abs(numeric).max()), "the two differ, and the test sees it"


def test_power_iteration_finds_the_eigenvalue_of_largest_magnitude():
    matrices = np.stack([np.diag([3.0, -1, 0.5]), np.diag([1.0, -4, 2]), np.zeros((3, 3))])

    def apply(rows: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.einsum("bde,be->bd", matrices[rows], v)

    found = jacobian.power_iteration(apply, np.ones((3, 3)), 1e-9, 200)
    assert found.value == pytest.approx([3, -4, 0])
    assert found.magnitude == pytest.approx([3, 4, 0])
    assert found.residual == pytest.approx(np.zeros(3), abs=1e-3)
    assert jacobian.power_iteration(apply, np.ones((3, 3)), 1e-9, 5).iterations.max() == 5


@pytest.mark.parametrize(("score", "signs"), [(0.1, {-1, 1}), ("infinity", {-1})])
def test_the_dominant_eigenvalue_has_its_sign(score, signs):
    generator = np.random.default_rng(3)
    images = generator.random((12, 8))
    found = jacobian.linearize(jacobian.bisector_points(images, 5, 0.01, 0), images, score)
    exact = np.linalg.eigvalsh(found.dense())
    measured = jacobian.spectrum(found, 1e-9, 3000, 0)
    assert measured["rho"] == pytest.approx(np.abs(exact).max(axis=1), rel=1e-5)
    assert measured["largest"] == pytest.approx(exact[:, -1], abs=1e-4 * np.abs(exact).max())
    dominant = np.where(exact[:, -1] > -exact[:, 0], exact[:, -1], exact[:, 0])
    assert measured["dominant"] == pytest.approx(dominant, rel=1e-5)
    assert set(np.sign(dominant)) == signs, "both signs are met"


def test_a_point_does_not_depend_on_the_others():
    images = np.random.default_rng(4).random((12, 8))
    points = jacobian.bisector_points(images, 5, 0.01, 0)
    together = jacobian.spectrum(jacobian.linearize(points, images, 2.0), 1e-6, 500, 0)
    alone = jacobian.spectrum(jacobian.linearize(points[:1], images, 2.0), 1e-6, 500, 0)
    assert alone["rho"][0] == pytest.approx(together["rho"][0], rel=1e-9)


def test_bisector_points_are_as_far_from_both_images():
    images = np.array([[0.0, 0, 1], [1.0, 0, 0], [0.0, 0, 1]])  # the first and the last are equal
    points = jacobian.bisector_points(images, 10, 0.0, 0)
    assert points == pytest.approx(np.tile([0.5, 0, 0.5], (10, 1)))
    with pytest.raises(InputError, match=r"verify\.blocks\.jacobian: nearly all training images are equal"):
        jacobian.bisector_points(images[[0, 2]], 1, 0.0, 0)


def test_weights_by_hand():
    squared = np.array([[1.0, 4.0]])  # d = 10: (r_2/r_1)^8 = 256
    found, precision = product.weigh(squared, 10, 1.0)
    assert found[0] == pytest.approx([256 / 257, 1 / 257])
    assert precision[0] == pytest.approx([8, 2])
    assert product.weigh(squared, 10, 8.0)[0][0] == pytest.approx([2 / 3, 1 / 3])
    assert product.weigh(squared, 10, "infinity")[0][0] == pytest.approx([0.5, 0.5])
    found, precision = product.weigh(squared, 10, "conditioning", sigma=math.sqrt(1.5 / math.log(3)))
    assert found[0] == pytest.approx([3 / 4, 1 / 4])
    assert precision[0] == pytest.approx(np.full(2, math.log(3) / 1.5))
    # without a level: σ² = 1/10, so the far image weighs e^{−15}
    assert product.weigh(squared, 10, "conditioning")[0][0, 1] == pytest.approx(math.exp(-15), rel=1e-6)


def test_weights_give_the_pipelines_score():
    generator = np.random.default_rng(5)
    images, points = generator.random((7, 9)), generator.random((3, 9))
    centres, x = empirical_score.make_centres(torch.from_numpy(images)), torch.from_numpy(points)
    sigma = torch.full((3,), 0.3, dtype=torch.float64)
    expected = {
        "conditioning": empirical_score.conditioning(centres, x, sigma),
        5.0: empirical_score.unconditioning(centres, x, 5.0),
    }
    for score, wanted in expected.items():
        found, precision = product.weigh(product.squared_distances(points, images), 9, score, sigma=0.3)
        pull = found * precision
        assert pull @ images - pull.sum(axis=1, keepdims=True) * points == pytest.approx(wanted.numpy())


def block(**changes) -> jacobian.Jacobian:
    return jacobian.Jacobian(**{**JACOBIAN, **changes})


def test_jacobian_block_on_noise_images():
    parts = [piece.findings(0, pictures()) for piece in block().pieces()]
    assert len(parts) == 4
    rows = [row for part in parts for row in part.tables["jacobian"]]
    assert len(rows) == 6 + 3 * 2 * 6, "conditioning once, each temperature frozen and differentiated, 6 points"
    infinite = [row for row in rows if row["score"] == "T = ∞" and row["sigma_star"] == "frozen"]
    assert all(row["rho"] == pytest.approx(row["lambda_bar"]) and row["dominant"] < 0 for row in infinite)
    claims = [claim for part in parts for claim in part.claims] + block().conclude({"jacobian": rows})
    assert all(claim.passed for claim in claims), [claim.claim for claim in claims if not claim.passed]


def test_a_wrong_jacobian_formula_would_fail(monkeypatch):
    monkeypatch.setattr(jacobian, "inverse_temperature", lambda score: 2.0)
    findings = block(scores=[1.0]).findings(0, pictures())
    assert not all(claim.passed for claim in findings.claims)


def test_the_fall_of_the_spectral_radius_is_asked_where_weights_are_steep():
    def rows(temperature, rho):
        return [
            {"score": f"T = {temperature:g}", "steepness": 1 / temperature, "d": 252, "sigma_star": "frozen",
             "point": i, "rho": rho + i, "lambda_bar": 1.0}
            for i in range(3)
        ]  # fmt: skip

    claims = block().conclude({"jacobian": [*rows(1, 1e4), *rows(10, 1e3), *rows(100, 5.0)]})
    assert [claim.expected for claim in claims] == [10.0, 0.0], "at d = 252 T = 100 is not steep"
    assert all(claim.passed for claim in claims)
    claims = block().conclude({"jacobian": [*rows(1, 1e4), *rows(10, 6e3)]})
    assert not claims[0].passed


def test_published_numbers_are_for_cifar10_only():
    with pytest.raises(InputError, match=r"verify\.blocks\.jacobian\.cifar10 is for 32×32×3 images"):
        block(cifar10=True).findings(0, pictures())


def settings(**changes) -> collapse.Collapse:
    return collapse.Collapse(**{**COLLAPSE, **changes})


def test_first_step_above_a_cut():
    weight = np.array([[0.1, 0.6, 0.4, 0.95], [0.2, 0.3, 0.3, 0.4]])
    assert collapse.first_above(weight, 0.5).tolist() == [2, 0]
    assert collapse.first_above(weight, 0.9).tolist() == [4, 0]


def test_with_one_image_the_noise_follows_the_schedule():
    """One image: x − x_i shrinks by σ_{n+1}/σ_n at every step, so σ̂ = R_0 σ_n/σ_1 (conditioning, exactly)."""
    found = collapse.run(pictures(1), "conditioning", settings(), 0)
    assert found.actual / found.actual[:, :1] == pytest.approx(
        np.tile(found.sigmas / found.sigmas[0], (3, 1)), rel=1e-6
    )
    assert found.weight == pytest.approx(np.ones_like(found.weight))


def test_a_trajectory_ends_on_a_training_image_unless_the_weights_are_hot():
    images = pictures()
    cold, hot = (collapse.run(images, score, settings(), 0) for score in ("conditioning", 1000.0))
    assert cold.weight[:, -1] == pytest.approx(np.ones(3))
    assert (
        np.abs(images.reshape(20, -1) - cold.states[-1].reshape(1, -1).astype(int)).max(axis=1).min() <= 5 * 0.01 * 255
    )
    assert hot.weight[:, -1].max() < 0.1
    assert cold.states.shape == (4, 4, 4, 1)


def test_collapse_block_compares_its_scores():
    parts = [piece.findings(0, pictures()) for piece in settings().pieces()]
    tables = {name: [row for part in parts for row in part.tables[name]] for name in ("collapse", "collapse_steps")}
    claims = settings().conclude(tables)
    order = [claim for claim in claims if claim.claim.startswith("The hotter")]
    assert len(order) == 2
    assert all(claim.passed for claim in order)
    assert len([claim for claim in claims if claim.claim.startswith("Unconditioning collapses")]) == 2
    backwards = [{**row, "step": 40 - row["step"]} for row in tables["collapse_steps"] if row["score"] != "T = 1000"]
    hot = [{**row, "score": "T = 1000", "order": 0.999, "step": 1} for row in backwards if row["score"] == "T = 1"]
    assert not all(claim.passed for claim in settings().conclude({"collapse_steps": [*backwards, *hot]}))


def test_cifar10_collapse_claims_fail_on_other_numbers():
    rows = [
        {"score": name, "order": order, "cut": 0.5, "trajectory": i, "step": step + i, "levels": 116}
        for name, order, step in (("conditioning", -1.0, 42), ("T = 100", 0.99, 90), ("T = 500", 0.998, 100))
        for i in range(2)
    ]
    claims = settings(cuts=[0.5], cifar10=True).conclude({"collapse_steps": rows})
    verdicts = {(claim.claim.split(" (")[0], claim.source): claim.passed for claim in claims}
    assert verdicts["CIFAR-10: conditioning collapses at step 35 ± 1", "METHODS §3 [P]"] is False
    assert verdicts["CIFAR-10: conditioning collapses at step 43 ± 5", "METHODS §3 [chk]"] is True
    assert verdicts["CIFAR-10: T = 100 collapses at step 91 ± 3", "METHODS §3 [chk]"] is True
    assert verdicts["CIFAR-10: T = 500 never collapses", "METHODS §3 [chk]"] is False


def test_a_subset_is_seeded_and_nested():
    small, large = subset_rows(1000, 10, 3), subset_rows(1000, 50, 3)
    assert set(small) <= set(large)
    assert small.tolist() == sorted(small)
    assert small.tolist() != subset_rows(1000, 10, 4).tolist()
    assert subset_rows(5, 10, 0).tolist() == [0, 1, 2, 3, 4]


def test_a_subset_is_read_as_it_is_or_resized(tmp_path):
    grey = [np.full((6, 6), 40 * i, np.uint8) for i in range(3)]
    for i, image in enumerate(grey):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    source = open_source(f"folder:{tmp_path}")
    assert read_subset(source, np.array([0, 2]), None).tolist() == [
        grey[0][..., None].tolist(),
        grey[2][..., None].tolist(),
    ]
    assert read_subset(source, np.array([1]), 3).tolist() == np.full((1, 3, 3, 1), 40).tolist()
    Image.new("RGB", (6, 4)).save(tmp_path / "3.png")
    with pytest.raises(InputError, match=r"3\.png .* is 6 × 4, not 6 × 6: set a resolution"):
        read_subset(open_source(f"folder:{tmp_path}"), np.arange(4), None)
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1\.png .*unreadable"):
        read_subset(open_source(f"folder:{tmp_path}"), np.arange(3), None)


def test_a_mode_chooses_the_values_and_both_are_checked():
    both = {**BLOCKS["mismatch"], "draws": {"quick": 50, "full": 70}}

    def draws(**changes) -> int:
        return verify.Params.from_tree({"verify": section(mismatch=both, **changes)}).blocks.mismatch.draws

    assert draws() == 50
    assert draws(mode="full") == 70
    both["draws"]["full"] = 1
    with pytest.raises(InputError, match=r"params\.yaml: verify\.blocks\.mismatch\.draws"):
        draws()
    both["draws"] = {"quick": 50}
    with pytest.raises(InputError, match=r"params\.yaml: missing key verify\.blocks\.mismatch\.draws\.full"):
        draws()
    with pytest.raises(InputError, match=r"verify\.mode"):
        verify.Params.from_tree({"verify": section(mode="slow")})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mismatch": {**BLOCKS["mismatch"], "draws": 1}}, "my.yaml: mismatch.draws: "),
        ({"mismatch": {**BLOCKS["mismatch"], "draws": {"quick": 50}}}, "my.yaml: missing key mismatch.draws.full"),
        ({"mismatch": {"dimension": 64, "draws": 50}}, "my.yaml: missing key mismatch.betas: add it"),
        ({"jacobain": {}}, "my.yaml: unknown key jacobain"),
        ({"jacobian": None}, "my.yaml: jacobian: "),
    ],
)
def test_what_is_wrong_with_the_blocks_names_their_file(change, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = {"verify": {**section(), "blocks": "my.yaml"}}
    with pytest.raises(InputError, match=r"my\.yaml is missing"):
        verify.Params.from_tree(tree)
    Path("my.yaml").write_text(json.dumps(BLOCKS))
    assert verify.Params.from_tree(tree) == verify.Params.from_tree({"verify": section()})
    Path("my.yaml").write_text(json.dumps({**BLOCKS, **change}))
    with pytest.raises(InputError) as caught:
        verify.Params.from_tree(tree)
    assert str(caught.value).startswith(expected)


def test_a_named_data_set_is_read_and_its_files_are_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for i, image in enumerate(pictures(6)):
        Image.fromarray(image[..., 0]).save(f"images/{i}.png")
    params = verify.Params.from_tree({"verify": section(dataset="folder:images")})
    shards = {shard.task: shard for shard in verify.plan(params)}
    assert len(shards["jacobian"].inputs) == 6
    assert shards["shell_touch"].inputs == ()
    assert verify.load(shards["jacobian"].settings["images"], 4, params.seed).shape == (4, 4, 4, 1)
    verify.work(shards["jacobian"].at("part.json"))
    assert read_json("part.json")["tables"]["jacobian"]
    with pytest.raises(InputError, match=r"verify\.resolution resizes verify\.dataset only"):
        verify.plan(verify.Params.from_tree({"verify": section(resolution=8)}))


def test_a_block_may_have_images_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder, count in (("images", 6), ("digits", 5)):
        Path(folder).mkdir()
        for i, image in enumerate(pictures(count)):
            Image.fromarray(image[..., 0]).save(f"{folder}/{i}.png")
    changes = {"dataset": "folder:images", "resolution": 3}
    own = {"smoothed_images": {**BLOCKS["smoothed_images"], "dataset": "folder:digits"}}
    params = verify.Params.from_tree({"verify": section(**changes, **own)})
    shards = {shard.task: shard for shard in verify.plan(params)}
    assert [Path(path).parent.name for path in shards["smoothed_images"].inputs] == ["digits"] * 5
    assert {Path(path).parent.name for path in shards["collapse"].inputs} == {"images"}
    assert verify.load(shards["smoothed_images"].settings["images"], 9, params.seed).shape == (5, 4, 4, 1)
    assert verify.load(shards["collapse"].settings["images"], 9, params.seed).shape == (6, 3, 3, 1)


def test_one_image_is_too_few(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(verify.TRAIN, image_table(pictures(1)))
    with pytest.raises(InputError, match="verify needs at least 2"):
        verify.load({"source": None, "resolution": None}, 10, 0)


def test_an_eigenvalue_that_the_start_hardly_contains_is_found():
    """d − 1 eigenvalues −λ̄ and one 1.5 λ̄: from a random start ‖J v‖ rests at λ̄ at first, which is no convergence."""
    centres = np.zeros((2, 2000))
    centres[:, 0] = -1, 1
    found = jacobian.linearize(np.zeros((40, 2000)), centres, 1998 / 2.5)  # c²/T − c = 1.5 c, λ̄ = c = 1998
    assert found.mean_precision == pytest.approx(np.full(40, 1998.0))
    measured = jacobian.spectrum(found, 1e-4, 100, 0)
    assert measured["rho"] == pytest.approx(np.full(40, 1.5 * 1998), rel=1e-3)
    assert measured["dominant"] == pytest.approx(np.full(40, 1.5 * 1998), rel=1e-3)
