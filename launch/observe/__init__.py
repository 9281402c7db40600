"""What a run is doing: states, tables, logs, efficiency, the report, the doctor."""
