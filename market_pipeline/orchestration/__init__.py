"""Dagster: partitions, assets, checks, jobs, schedules and resources; with definitions.py the only room that has it."""
