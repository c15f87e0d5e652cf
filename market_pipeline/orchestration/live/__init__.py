"""The live run: the job, the sensor that keeps it alive, and how its work appears on the assets."""
