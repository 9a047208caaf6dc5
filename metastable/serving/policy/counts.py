"""What a policy did, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter


class Counts:
    """Counters of rules for flagged images, and the shadow.

    Labels are bounded: settings are those of the operator's files.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"metastable_{name}", text, labels, registry=registry)

        self._flags = counter(
            "flag_policy_total", "Flagged images by what became of them", "setting", "action"
        )
        self._shadow = counter("shadow_total", "Images sampled for the shadow", "setting", "outcome")
        pair = ("setting", "shadow")
        self._labels = counter("shadow_label_differences_total", "Labels other than the shadow's", *pair)
        self._anomalies = counter("shadow_flag_differences_total", "Flags other than the shadow's", *pair)
        self._chains = counter("shadow_chains_total", "Chains of images compared", *pair, "of")
        self._seconds = counter("shadow_seconds_total", "Work on images compared, in seconds", *pair, "of")

    def flagged(self, setting: str, action: str) -> None:
        """A flagged image that this setting had answered."""
        self._flags.labels(setting, action).inc()

    def shadow(self, setting: str, outcome: str) -> None:
        """An image for the shadow's setting: compared, failed, full (no place to wait) or interrupted."""
        self._shadow.labels(setting, outcome).inc()

    def compared(
        self,
        pair: tuple[str, str],
        *,
        label: bool,
        flag: bool,
        chains: tuple[int, int],
        seconds: tuple[float, float],
    ) -> None:
        """An answer and its shadow: their settings, whether label and flag differ, and what each cost."""
        self._labels.labels(*pair).inc(label)
        self._anomalies.labels(*pair).inc(flag)
        for of, count, spent in zip(("answer", "shadow"), chains, seconds, strict=True):
            self._chains.labels(*pair, of).inc(count)
            self._seconds.labels(*pair, of).inc(spent)
