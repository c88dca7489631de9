"""What the words mean: one definition each, for the filter, the audit, the report and the README.

The rules that apply a definition differ in their thresholds and are stated where they are used: the filter judges by
r₁/r₂ (`verdicts.ratio_rules`), the audit by ρ* (`verdicts.rho_star_rules`).
"""

VERDICTS = ("copy", "near_copy", "blend", "same_content", "unsure", "novel")  # in the order in which they are listed
COPIED = ("copy", "near_copy")

MEANING = {  # word -> a sample that …
    "copy": "equals a training image, or lies so much nearer to one than to the others that hardly any held-out image "
    "does",
    "near copy": "does so by a wider limit, which a few per cent of held-out images pass",
    "copied": "is a copy or a near copy by pixels, whatever its features say: what the headline counts",
    "blend": "is not copied, and lies nearer to the convex hull of its 8 nearest training images than 99 % of held-out "
    "images do; in the audit also made of clearly more than one of them",
    "same content": "is far from every training image in pixels, but in features as near to one as other training "
    "images are",
    "unsure": "is for a person to decide: pixels and features disagree, or several training images are about equally "
    "near",
    "novel": "is none of these",
}
