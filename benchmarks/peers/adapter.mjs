// The base of the Node adapters: one process, one command, one peer. No dependencies. The commands, their output and
// the files behind BENCH_STARTS, BENCH_COUNTS and BENCH_COMMITS are described in docs/benchmarks/README.md. A peer is
// an object with:
//
//   setup(dsn)                 installs its schema
//   connect(dsn, connections)  a client with a pool of so many connections:
//                              add(payload): one job, committed when the promise resolves
//                              addAll(payloads): some jobs, in one documented bulk call; committed likewise
//                              batch: how many jobs to give to addAll at once
//                              left(): how many jobs are not yet finished
//                              close()
//   work(dsn, aim, run)        starts a worker (aim: "drain", "latency" or undefined) that calls run(payload) for each
//                              job; resolves when it serves, with {stop()}

import fs from "node:fs";
import readline from "node:readline";
import { parseArgs } from "node:util";

const TEXT = "x".repeat(76); // with the rest of the payload about 100 bytes of JSON
const FLUSH_MS = 5;
const WARM_UP = 5; // jobs per client, before what is measured one by one

/** A job's payload. */
const payloadOf = (n) => ({ n, text: TEXT });

/** CLOCK_MONOTONIC in milliseconds. */
const now = () => Number(process.hrtime.bigint()) / 1e6;

/** CPU seconds, user + system, of this process so far. */
function cpu() {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

/** Return after so many milliseconds. */
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** The value that `share` of the values do not exceed. */
function percentile(values, share) {
  const ordered = Float64Array.from(values).sort();
  return ordered.length ? ordered[Math.min(ordered.length - 1, Math.trunc(share * ordered.length))] : null;
}

/** An answer of one JSON line. */
const answer = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

/**
 * A file of times, eight bytes per job, and perhaps one of counts, a byte per job.
 *
 * Node cannot map files: marks are kept in typed arrays and written to the files at most FLUSH_MS later. A timer runs
 * only while something is to be written, so an idle process sleeps.
 */
class Marks {
  constructor(timesPath, countsPath) {
    this.timesFile = fs.openSync(timesPath, "r+");
    this.countsFile = countsPath === undefined ? null : fs.openSync(countsPath, "r+");
    const jobs = fs.fstatSync(this.timesFile).size / 8;
    this.times = new BigInt64Array(jobs);
    this.timesBytes = new Uint8Array(this.times.buffer);
    this.counts = new Uint8Array(jobs); // how often since the last flush
    this.touched = [];
    this.timer = null;
    this.flush = this.flush.bind(this);
  }

  /** Write down that job n starts (or is committed) now. */
  mark(n) {
    this.times[n] = process.hrtime.bigint();
    this.counts[n] += 1;
    this.touched.push(n);
    this.timer ??= setTimeout(this.flush, FLUSH_MS);
  }

  /** Write what was touched since the last time, neighbours in one call. */
  flush() {
    clearTimeout(this.timer);
    this.timer = null;
    const touched = Uint32Array.from(this.touched).sort();
    this.touched = [];
    for (let first = 0, last; first < touched.length; first = last + 1) {
      for (last = first; last + 1 < touched.length && touched[last + 1] - touched[last] <= 1; ) last += 1;
      this.write(touched[first], touched[last] + 1);
    }
  }

  write(begin, end) {
    fs.writeSync(this.timesFile, this.timesBytes, 8 * begin, 8 * (end - begin), 8 * begin);
    if (this.countsFile === null) return;
    const before = new Uint8Array(end - begin); // another worker process may have counted the same job
    fs.readSync(this.countsFile, before, 0, before.length, begin);
    fs.writeSync(this.countsFile, before.map((count, i) => count + this.counts[begin + i]), 0, before.length, begin);
    this.counts.fill(0, begin, end);
  }
}

/** What a stretch of enqueueing took: of `jobs` jobs from now until done() is called. */
function stretch() {
  const [began, spent] = [now(), cpu()];
  return { began, done: (jobs) => ({ jobs, seconds: (now() - began) / 1e3, cpu: cpu() - spent }) };
}

/** Open a client for the length of use(client). */
async function withClient(peer, dsn, connections, use) {
  const client = await peer.connect(dsn, connections);
  try {
    return await use(client);
  } finally {
    await client.close();
  }
}

/** Run client(0) … client(count - 1) side by side. */
const side = (count, client) => Promise.all(Array.from({ length: count }, (_, i) => client(i)));

async function load(client, jobs, first) {
  await connected(client, 1);
  const { done } = stretch();
  for (let begin = 0; begin < jobs; begin += client.batch) {
    const size = Math.min(client.batch, jobs - begin);
    await client.addAll(Array.from({ length: size }, (_, i) => payloadOf(first + begin + i)));
  }
  answer(done(jobs));
}

async function one(client, seconds, clients, first) {
  const waits = [];
  let n = first;
  await side(clients, async () => {
    for (let i = 0; i < WARM_UP; i += 1) await client.add(payloadOf(n++));
  });
  const { began, done } = stretch();
  await side(clients, async () => {
    for (let called = now(); called - began < 1e3 * seconds; ) {
      await client.add(payloadOf(n++));
      const returned = now();
      waits.push(returned - called);
      called = returned;
    }
  });
  answer({ ...done(waits.length), p50_ms: percentile(waits, 0.5), p99_ms: percentile(waits, 0.99) });
}

async function ping(client) {
  await connected(client, 1);
  process.stdout.write("ready\n");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const payload = payloadOf(Number(line));
    const before = process.hrtime.bigint();
    await client.add(payload);
    process.stdout.write(`${before} ${process.hrtime.bigint()}\n`);
  }
}

async function pace(client, jobs, rate, clients) {
  const commits = new Marks(process.env.BENCH_COMMITS);
  await connected(client, clients);
  process.stdout.write("ready\n");
  await new Promise((resolve) => readline.createInterface({ input: process.stdin }).once("line", resolve));
  const { began, done } = stretch();
  await side(clients, async (i) => {
    for (let n = i; n < jobs; n += clients) {
      const wait = began + (1e3 * n) / rate - now();
      if (wait > 0) await sleep(wait); // a timer of Node has a granularity of 1 ms
      await client.add(payloadOf(n));
      commits.mark(n);
    }
  });
  commits.flush();
  answer(done(jobs));
  process.stdin.destroy();
}

/** Open the pool's connections, so that no figure has the opening of one in it. */
const connected = (client, connections) => side(connections, () => client.left());

async function work(peer, dsn, aim) {
  const { BENCH_STARTS, BENCH_COUNTS } = process.env;
  let marks = null; // opened by the first job: a worker that only rests has no files
  const run = ({ n }) => {
    marks ??= new Marks(BENCH_STARTS, BENCH_COUNTS);
    marks.mark(n);
  };
  const terminated = new Promise((resolve) => process.once("SIGTERM", resolve));
  const worker = await peer.work(dsn, aim, run);
  process.stdout.write("ready\n");
  await terminated;
  await worker.stop();
  marks?.flush();
}

/** Run the command of this process's command line with this peer. */
export async function main(peer) {
  const number = { type: "string" };
  const options = { jobs: number, first: number, seconds: number, clients: number, rate: number, for: number };
  const { positionals, values } = parseArgs({ options, allowPositionals: true });
  const [jobs, first, seconds, clients, rate] = ["jobs", "first", "seconds", "clients", "rate"].map((name) =>
    values[name] === undefined ? undefined : Number(values[name]),
  );
  const dsn = process.env.BENCH_DSN;
  const commands = {
    setup: () => peer.setup(dsn),
    load: () => withClient(peer, dsn, 1, (client) => load(client, jobs, first ?? 0)),
    one: () => withClient(peer, dsn, clients, (client) => one(client, seconds, clients, first ?? 0)),
    ping: () => withClient(peer, dsn, 1, ping),
    pace: () => withClient(peer, dsn, clients ?? 4, (client) => pace(client, jobs, rate, clients ?? 4)),
    work: () => work(peer, dsn, values.for),
    left: () => withClient(peer, dsn, 1, async (client) => answer(await client.left())),
  };
  const command = commands[positionals[0]];
  if (command === undefined) throw new Error(`commands: ${Object.keys(commands).join(", ")}`);
  await command();
}
