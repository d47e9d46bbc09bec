from relu_sparsity.paper.catalog import FIGURES, METRIC_TITLES, RUN_TITLES, figures
from relu_sparsity.paper.published import published, published_layers


def test_every_figure_of_the_paper_is_there():
    assert [figure.number for figure in FIGURES.values()] == [str(k) for k in range(1, 35)]
    assert all(figure.id == name for name, figure in FIGURES.items())


def test_the_figure_of_an_own_run_has_its_name(params):
    own = dict.fromkeys(("fig01", "figure", "fig007", "run_2"), params.runs["baseline"])
    drawn = figures({**params.paper_runs, **own})
    assert [drawn[f"run_{name}"].number for name in own] == list(own)


def test_figures_show_known_runs_and_metrics(params):
    for figure in FIGURES.values():
        assert set(figure.runs) <= set(params.runs)
        assert set(figure.runs) <= set(RUN_TITLES)
        assert {panel.metric for panel in figure.panels} <= set(METRIC_TITLES)


def test_every_panel_that_a_table_of_the_paper_has_names_it():
    for figure in FIGURES.values():
        for panel in figure.panels:
            tables = [
                table
                for table in range(1, len(published()["tables"]) + 1)
                if any(published_layers(table, run, panel.metric) for run in panel.runs)
            ]
            assert panel.table == (tables[0] if tables else None)


def test_captions_say_what_is_shown():
    assert "per token" in FIGURES["fig23"].caption
    assert "order of A.4" in FIGURES["fig23"].caption
    assert "(Table 1, Table 3)" in FIGURES["fig02"].caption
    assert "by depth" in FIGURES["fig04"].caption
    assert len({figure.caption for figure in FIGURES.values()}) == 34 - 4, (
        "6/7, 8/9, 15/24, 16/25 are twins"
    )
