"""The fields of `Algorithm`, which defines a method, each with its meaning and range.

One technique is one field, so an ablation is one copied field (`vapo.algo.techniques`). Where a field has variants,
it is a union of small types that share one tag, `kind`. The papers' numbers are in `vapo.algo.presets`.

    algorithm            Algorithm: the fields, and which go together
    step_parts           sampling, reward, KL penalty, step sizes
    credit_sources       a critic with GAE, or the group's mean
    lambda_rules         λ: fixed, length-adaptive, relative, by share, between turns
    value_heads          linear, bounded, sigmoid, HL-Gauss
    value_tokens         all tokens, anchors, turn starts
    trust_regions        clip, dual clip, ratio mask, probability bound
    sampler_corrections  none, truncated weight, band, sequence mask
"""

from vapo.algo.method.algorithm import Algorithm, Truncation
from vapo.algo.method.credit_sources import Credit, Gae, GroupBaseline
from vapo.algo.method.lambda_rules import BetweenTurns, Fixed, Lambda, LengthAdaptive, Relative, Share
from vapo.algo.method.sampler_corrections import Band, NoCorrection, SamplerCorrection, SequenceMask, TruncatedWeight
from vapo.algo.method.step_parts import Kl, Optimization, Reward, Sampling
from vapo.algo.method.trust_regions import Clip, DualClip, ProbabilityBound, RatioMask, TrustRegion
from vapo.algo.method.value_heads import BoundedHead, Head, HistogramHead, LinearHead, SigmoidHead, Start
from vapo.algo.method.value_tokens import AllTokens, Anchors, TurnStarts, ValueTokens

__all__ = [
    "Algorithm",
    "AllTokens",
    "Anchors",
    "Band",
    "BetweenTurns",
    "BoundedHead",
    "Clip",
    "Credit",
    "DualClip",
    "Fixed",
    "Gae",
    "GroupBaseline",
    "Head",
    "HistogramHead",
    "Kl",
    "Lambda",
    "LengthAdaptive",
    "LinearHead",
    "NoCorrection",
    "Optimization",
    "ProbabilityBound",
    "RatioMask",
    "Relative",
    "Reward",
    "SamplerCorrection",
    "Sampling",
    "SequenceMask",
    "Share",
    "SigmoidHead",
    "Start",
    "TruncatedWeight",
    "Truncation",
    "TrustRegion",
    "TurnStarts",
    "ValueTokens",
]
