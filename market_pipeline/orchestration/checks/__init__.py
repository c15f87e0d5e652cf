"""The checks: what each reads is beside what it concludes; the conclusions are pure functions of frames."""
