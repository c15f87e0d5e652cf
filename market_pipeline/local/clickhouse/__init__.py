"""A ClickHouse server for one machine: the chDB engine behind ClickHouse's HTTP interface, on loopback.

chDB locks its folder to one process, so one server process owns the engine and everybody else uses an
ordinary ClickHouse HTTP client; code that runs here runs unchanged against a ClickHouse server.

    python -m market_pipeline.local.clickhouse --path DIR --port N --password-file FILE

One concern a module, outermost first:

    process      start a server as a child process (what tests and other rooms use)
    __main__     the command line
    server       the order in which a server starts and stops
    options, password, lock, parent    what is checked before the engine opens
    app          one HTTP request from its first byte to its last
    protocol     what a request asks for: parameters, settings, credentials
    bodies, compression                what a request carries
    select, insert, answer, arrow      the two ways to answer, and how answers are written
    engine, sessions                   handles of chDB and who may use them
    sql, errors                        what statements and errors look like
"""
