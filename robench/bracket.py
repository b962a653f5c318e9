"""Between what and what a robust accuracy lies when its dear attacks were run on a random part of the images. No torch here.

APGD-CE and APGD-T are run on all images, FAB-T and Square on a random sample of those they left. Of the images left that were not
sampled, FAB-T and Square would break an unknown share. With k of m sampled images broken, that share is below the upper
Clopper-Pearson bound at 95 % confidence:

    the p with P(at most k of m broken | share p) = 5 %

so the accuracy of the whole suite lies between (left - p * unsampled) / count and left / count, where `left` counts the images
that nothing broke. The upper end is what the stored bits say.

Source: Clopper & Pearson 1934; one-sided, since more attacks only ever break more.
"""

from __future__ import annotations

from robench.results import Result
from robench.statistic import at_most

CONFIDENCE = 0.95
MEMBERS = ("fab-t", "square")  # run on the sample, in this order
SAMPLED = "sampled"  # what `Result.left` calls the size of the sample


def interval(result: Result) -> tuple[float, float] | None:
    """The lowest and highest robust accuracy of the whole suite, as fractions; None for what was run on all images."""
    if SAMPLED not in result.left or result.cell.source:
        return None
    sampled, kept = result.left[SAMPLED], result.left.get(MEMBERS[-1], 0)  # which does not run where nothing is left
    left = sum(result.robust)
    unsampled = left - kept
    share = at_most(sampled - kept, sampled, CONFIDENCE) if sampled else 1.0
    return max(0.0, left - share * unsampled) / len(result.robust), left / len(result.robust)
