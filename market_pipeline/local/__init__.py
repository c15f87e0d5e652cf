"""The embedded stack: every server of the pipeline on one machine, from wheels, under one supervisor.

stack        start, find and stop a stack from Python; `market-pipeline up` and the tests use it
supervisor   the one process that owns a stack; keeper: one component's life inside it
components/  what each server needs: configuration, command line, probe
orphans, locks, processes      servers that outlive their supervisor, and how they are ended
layout, passwords, ports, environment, state   the files in the stack's folder
doctor       what is wrong and what to do
clickhouse/  the ClickHouse server over chDB, a program of its own
"""
