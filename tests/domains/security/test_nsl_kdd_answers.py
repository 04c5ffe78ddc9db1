"""Answers on the real KDDTest+: streamed as in the test, and beside the baselines."""

import numpy as np
import pandas as pd
import pytest
import torch

import data as catalogue
from domains.security.alerts import FlowAlerts
from domains.security.data import FlowData
from domains.security.intrusion_detection import IntrusionDetection
from domains.security.networks.flow_transformer import FlowTransformer
from domains.security.scores import attack_score
from pleiad.conclusion import _judge_baselines


@pytest.fixture(scope="module")
def flows(real_data):
    found = FlowData(seed=0)
    found.setup()
    return found


@pytest.mark.data
@pytest.mark.slow
def test_streamed_scores_are_those_of_the_test(flows, tmp_path):
    torch.manual_seed(0)
    network = FlowTransformer(**flows.preprocessing.sizes, inner=16, width=16).eval()
    source = catalogue.locate("nsl_kdd") / "KDDTest+.txt"
    output = tmp_path / "alerts.csv"
    said = FlowAlerts(flows.preprocessing).predict_file(network, source, output, keep="class")
    assert "22,544 flows" in said
    found = pd.read_csv(output)
    with torch.inference_mode():
        batches = flows.every_item(flows.test_set)
        scores = torch.cat([attack_score(network(b.numeric, b.codes)) for b in batches])
    np.testing.assert_allclose(found["score"], scores, atol=1e-6)
    assert (found["class"] != "normal").mean() == pytest.approx(12_833 / 22_544)


@pytest.mark.data
@pytest.mark.slow
def test_baselines_of_the_honest_split(flows):
    task = IntrusionDetection(FlowTransformer(**flows.preprocessing.sizes, inner=8, width=8))
    judged = _judge_baselines(task, flows)
    trees, linear = judged["gradient boosting"], judged["logistic regression"]
    forest = judged["isolation forest"]
    assert 0.77 < trees["test/f1"] < 0.81
    assert trees["test/false_alarm_rate"] < 0.04
    assert trees["test/pr_auc"] > 0.95
    assert 0.70 < linear["test/f1"] < 0.78
    assert 0.75 < forest["test/f1"] < 0.87
