from hpt_mlflow.report.commands import PROJECT_VARIABLE, stage_command


def test_a_stage_of_the_command_line_is_followed_by_one():
    assert (
        stage_command("adapt", parent="models:/hpt/4", data="FOLDER")
        == "hpt adapt --parent models:/hpt/4 --data FOLDER"
    )


def test_names_with_blanks_are_quoted():
    assert stage_command("adapt", parent="models:/my birds/4") == "hpt adapt --parent 'models:/my birds/4'"


def test_a_project_is_followed_by_the_project_with_its_environment(monkeypatch):
    monkeypatch.setenv(PROJECT_VARIABLE, "mlflow run /repo --env-manager local")
    assert stage_command("adapt", parent="models:/hpt/4") == (
        "mlflow run /repo --env-manager local -e adapt -P parent=models:/hpt/4"
    )
