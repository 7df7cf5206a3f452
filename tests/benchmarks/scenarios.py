"""Measure how soon alerts fire in faulty trainings: a table of the scenarios of tests/alerts.

python -m tests.benchmarks.scenarios
"""

from tests.alerts.scenarios import SCENARIOS, Scenario


def row(scenario: Scenario) -> str:
    """A line for a fault: the alert, how many readings after it began, and after it ended."""
    begins, ends, _ = scenario.stretches
    faulty, well = scenario.run(faulty=True), scenario.run(faulty=False)
    fired, resolved = (
        next(alert for alert in faulty.alerts if alert.rule == scenario.rule and alert.state == state)
        for state in ("firing", "resolved")
    )
    others = {
        alert.rule
        for alert in faulty.alerts
        if alert.rule != scenario.rule and alert.state == "firing" and alert.severity != "info"
    }
    twin = sum(alert.severity != "info" for alert in well.alerts)
    cells = [
        scenario.name,
        f"`{scenario.rule}`",
        f"{(fired.step - begins) / scenario.every:.0f}",
        f"{(resolved.step - ends) / scenario.every:.0f}",
        ", ".join(f"`{rule}`" for rule in sorted(others)) or "–",
        f"{twin or '–'}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    print("| what goes wrong | alert | after readings | resolved after | then also | twin |\n|---|---|---|---|---|---|")
    for scenario in SCENARIOS:
        print(row(scenario), flush=True)


if __name__ == "__main__":
    main()
