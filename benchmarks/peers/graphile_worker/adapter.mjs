// graphile-worker (https://worker.graphile.org), tuned by its page "Performance" and the comments of its types.
// 0.18.0 asks for Node 22.18; it runs on Node 20 too, where npm warns.

process.env.NO_LOG_SUCCESS = "1"; // its own switch: no log line per job (as in its own perfTest); read at import
const { Logger, makeWorkerUtils, run: runWorker, runMigrations } = await import("graphile-worker");
const { main } = await import("../adapter.mjs");

const TASK = "noop";

// Warnings and errors only, to stderr: stdout belongs to the protocol.
const logger = new Logger(() => (level, message) => {
  if (level === "warning" || level === "error") process.stderr.write(`${level}: ${message}\n`);
});

const TUNING = {
  // Throughput: as many jobs finish in one turn of the event loop, and are completed by one statement. The documented
  // benchmark has 24; 100 drained 10 to 20 % more here, with the same latency.
  concurrentJobs: 100,
  // Throughput: concurrentJobs + 1 as in the documented benchmark. A limit: so many are not opened.
  maxPoolSize: 101,
  // Throughput: fetch and lock 500 jobs at once, the documented benchmark's size. Latency: no refetchDelay, which is
  // for many workers: it makes jobs wait so that the server has less to do.
  localQueue: { size: 500 },
  // Throughput: complete finished jobs in one DELETE. 0 ms as in the documented benchmark: what one turn of the event
  // loop finishes; 25 ms, the documented start, drained less.
  completeJobBatchDelay: 0,
  // The same for failed jobs; there are none here.
  failJobBatchDelay: 0,
  // pollInterval stays at its 2,000 ms: new jobs are announced by NOTIFY, polling finds only those due later.
};

/** A client with a pool of its own. */
async function connect(dsn, connections) {
  const utils = await makeWorkerUtils({ connectionString: dsn, maxPoolSize: Math.max(2, connections), logger });
  return {
    batch: 10_000, // throughput: addJobs makes one statement of them; 1,000 took longer, 20,000 as long
    add: (payload) => utils.addJob(TASK, payload),
    addAll: (payloads) => utils.addJobs(payloads.map((payload) => ({ identifier: TASK, payload }))),
    left: () => utils.withPgClient(async (client) => {
      const { rows } = await client.query("SELECT count(*)::int AS jobs FROM graphile_worker.jobs");
      return rows[0].jobs;
    }),
    close: () => utils.release(),
  };
}

/** A worker in this process. One tuning serves all regimes. */
async function work(dsn, _aim, run) {
  const runner = await runWorker({
    preset: { worker: { connectionString: dsn, logger, ...TUNING } },
    taskList: { [TASK]: async (payload) => run(payload) },
    parsedCronItems: [], // no crontab
    noHandleSignals: true, // SIGTERM is the base adapter's
  });
  await new Promise((resolve) => runner.events.once("pool:listen:success", resolve));
  return { stop: () => runner.stop() };
}

await main({ setup: (dsn) => runMigrations({ connectionString: dsn, logger }), connect, work });
