"""
Prometheus' multiprocess mode: metrics of schedulers behind a server with several processes.

If ``PROMETHEUS_MULTIPROC_DIR`` is set, each process keeps its metrics in files in that directory.
The process that answers a scrape reads the files of all processes and combines their values
(`prometheus_client.multiprocess`). That mode does not support custom collectors. A process that
runs a scheduler therefore writes its metrics to files of the same format, once a second and when
the scheduler starts or stops. Both a ``MultiProcessCollector`` and the applications of the handle
read these files like those of any other metric.

The metric classes of `prometheus_client` are not used, because their files only grow: a removed
job would be exposed for ever, and each scrape would read the files of every process that ever ran.
Here, each process takes a slot, the first one that is free:

- A file is always written as a whole and replaced in one step, so series that no longer exist
  disappear from it.
- What other users have put in the place of a file is neither followed nor opened (`core.files`),
  and a file that cannot be read is left out of a scrape.
- The process holds a lock on its slot. The kernel releases the lock when the process ends, even if
  it is killed. Gauges in a slot that is not locked are stale, and any process removes them.
- Counters and histograms stay in the slot. The next process that takes the slot continues from
  them, so no count is lost, and there are never more files than processes at one time.

The modules, each of which imports only modules above it:

- `directory`: the environment variable, and the checks of the directory
- `file_format`: the files of prometheus_client
- `gauge_modes`: how the gauges of several processes are combined
- `slots`: the files and the lock of one scheduler in one process
- `snapshot`: the current metrics of a scheduler in the form in which files store them
- `counter_offsets`: what is added to the counters of this process before they are written
- `writer`: writes snapshots to a slot, in a thread
- `merge`: reads the files of all processes and combines their values
- `registry`: the metrics of all processes
"""
