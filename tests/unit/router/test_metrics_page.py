"""Merging the metrics of several processes."""

from neox_serve.router.metrics_page import merge


def test_merge_skips_texts_that_do_not_parse_and_families_of_another_type() -> None:
    good = "# TYPE a counter\na_total 1\n"
    merged = merge({(("instance", "x"),): good, (("instance", "y"),): "a{ 1", (("instance", "z"),): "# TYPE a gauge\na 3\n"})
    assert [(sample.labels, sample.value) for family in merged for sample in family.samples] == [({"instance": "x"}, 1.0)]
