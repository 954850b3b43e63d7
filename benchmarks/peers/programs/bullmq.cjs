// Submit jobs to BullMQ, or be its worker: bullmq.cjs submit TASK FIRST JOBS | bullmq.cjs worker
const fs = require("node:fs");
const { Queue, Worker } = require("bullmq");
const Redis = require("ioredis");

const connection = new Redis(process.env.BENCHMARK_REDIS_URL, { maxRetriesPerRequest: null });

async function submit(task, first, jobs) {
  const started = process.hrtime.bigint();
  const queue = new Queue("benchmark", { connection });
  for (let start = first; start < first + jobs; start += 1000) {
    const part = [];
    for (let n = start; n < Math.min(first + jobs, start + 1000); n++) part.push({ name: task, data: { n } });
    await queue.addBulk(part);
  }
  console.log(JSON.stringify({ seconds: Number(process.hrtime.bigint() - started) / 1e9 }));
  await queue.close();
  connection.disconnect();
}

function work() {
  // Node.js shares no memory with other processes: runs are counted here, and written to the file every 5 ms.
  const file = fs.openSync(process.env.BENCHMARK_MARKS, "r+");
  const runs = new Uint8Array(Math.floor(fs.fstatSync(file).size / 9));
  let changed = false;
  setInterval(() => {
    if (!changed) return;
    changed = false;
    fs.writeSync(file, runs, 0, runs.length, 0);
  }, 5);
  new Worker(
    "benchmark",
    async (job) => {
      runs[job.data.n] += 1;
      changed = true;
      if (job.name === "short") await new Promise((resolve) => setTimeout(resolve, 1));
      return job.data.n;
    },
    { connection, concurrency: Number(process.env.BENCHMARK_CONCURRENCY) },
  );
}

const [, , verb, task, first, jobs] = process.argv;
if (verb === "submit") submit(task, Number(first), Number(jobs));
else work();
