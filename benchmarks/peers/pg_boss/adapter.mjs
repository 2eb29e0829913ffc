// pg-boss (https://pgboss.io), tuned by its pages "Workers" and "Constructor" and the comments of its types.
// 12.35.0 asks for Node 22.12; it runs on Node 20 too, where npm warns. (10.4, the last for Node 20, polls only.)

import { PgBoss } from "pg-boss";

import { main } from "../adapter.mjs";

const QUEUE = "bench";

const TUNING = {
  // Throughput: jobs are fetched and completed in batches, one statement each. 500 drained a little less here.
  batchSize: 1_000,
  // Throughput: while batches come back full, fetch the next at once instead of at the next poll.
  burstWhenBatchFull: true,
  // Latency: the least allowed; only for when LISTEN fails, with it polls are every notifyPollingIntervalSeconds (30).
  pollingIntervalSeconds: 0.5,
  // Throughput: two loops, so that one batch is fetched while another is completed; a third gave nothing.
  localConcurrency: 2,
};

// Latency: creating a job NOTIFYs, and the worker (useListenNotify) is woken by it.
// (policy "standard", no table of its own: a partition was not faster; completed jobs stay for the default 7 days.)
const QUEUE_OPTIONS = { notify: true };

// A client only enqueues: no maintenance, no cron, no migration (the documented settings for that).
const CLIENT = { supervise: false, schedule: false, migrate: false };

/** A started instance whose warnings and errors go to stderr. */
async function start(dsn, options) {
  const boss = new PgBoss({ connectionString: dsn, ...options });
  boss.on("error", (error) => process.stderr.write(`error: ${error.message}\n`));
  boss.on("warning", ({ message }) => process.stderr.write(`warning: ${message}\n`));
  return boss.start();
}

/** Install the schema and the queue. */
async function setup(dsn) {
  const boss = await start(dsn, { supervise: false, schedule: false });
  await boss.createQueue(QUEUE, QUEUE_OPTIONS);
  await boss.stop();
}

/** A client with a pool of its own. */
async function connect(dsn, connections) {
  const boss = await start(dsn, { ...CLIENT, max: connections });
  return {
    batch: 10_000, // throughput: insert() makes one statement of them; 1,000 took longer
    add: (data) => boss.send(QUEUE, data),
    addAll: (payloads) => boss.insert(QUEUE, payloads.map((data) => ({ data }))),
    left: async () => {
      const statement = "SELECT count(*)::int AS jobs FROM pgboss.job WHERE name = $1 AND state <> 'completed'";
      const { rows } = await boss.getDb().executeSql(statement, [QUEUE]);
      return rows[0].jobs;
    },
    close: () => boss.stop(),
  };
}

/** A worker in this process, with maintenance and cron as they are by default. One tuning serves all regimes. */
async function work(dsn, _aim, run) {
  const boss = await start(dsn, { useListenNotify: true });
  await boss.work(QUEUE, TUNING, async (jobs) => {
    for (const { data } of jobs) run(data);
  });
  return {
    stop: async () => {
      await boss.offWork(QUEUE); // waits for the batch in hand
      await boss.stop();
    },
  };
}

await main({ setup, connect, work });
