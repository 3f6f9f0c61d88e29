"""The page of health."""

import html.parser

from analysis_findings_test import healthy

from tfkfac.analysis.findings import findings
from tfkfac.analysis.page import page, thinned

VOID = ("meta", "br")


class Balance(html.parser.HTMLParser):
    """Checks that each tag is closed."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def made(records):
    text = page(records, findings(records[-1]))
    thin = [*map(thinned, records[:-1]), records[-1]]
    assert page(thin, findings(records[-1])) == text
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    # It needs nothing else.
    assert not any(x in text for x in ("http", "src=", "<script", "@import"))
    return text


def test_a_healthy_run():
    text = made([healthy(), healthy(200, metrics={"loss": 0.25}, epoch=2)])
    assert "200 updates in 2 epochs; the loss went from 1 to 0.25" in text
    assert "Nothing to mend." in text and 'class="finding' not in text
    assert text.count("<svg") == 6 and "KL bound" in text
    assert ">conv</td>" in text and ">dense</td>" in text


def test_a_run_that_went_wrong():
    record = healthy(skipped=3, metrics={"loss": None}, kl_clip=None, clip=None)
    record["layers"]["<conv>"] = record["layers"].pop("conv")
    record["layers"]["<conv>"]["failed"] = 1
    text = made([healthy(50), record])
    assert "2 warnings: skipped updates, failed inversions." in text
    assert "the loss is not finite" in text
    assert '<td class="name bad" rowspan="2">&lt;conv&gt;</td>' in text
    assert '<td class="name" rowspan="2">dense</td>' in text
    assert "<conv>" not in text and "KL bound" not in text


def test_of_many_layers_those_that_stand_out_have_curves():
    record = healthy()
    layer = record["layers"]["dense"]
    record["layers"] = {
        f"layer_{i}": layer | {"share": i / 10} for i in range(10)
    }
    share = made([healthy(50), record]).split("Share of the KL")[1]
    legend = share.split('class="legend">')[1].split("</div>")[0]
    assert [f"layer_{i}" in legend for i in range(10)] == 4 * [False] + 6 * [
        True
    ]
