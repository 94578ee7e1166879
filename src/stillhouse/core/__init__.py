"""What every stage speaks: records, recipe, run folder, tasks, statistics, money, errors."""
