mod clickhouse_facade;
