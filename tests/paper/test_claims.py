from relu_sparsity.paper.claims import CLAIMS


def test_the_claims_are_the_papers():
    assert list(range(1, 28)) == [claim.number for claim in CLAIMS]
    assert len({claim.decide for claim in CLAIMS}) == 27
    assert all(claim.rule.endswith(".") and claim.statement.endswith(".") for claim in CLAIMS)
