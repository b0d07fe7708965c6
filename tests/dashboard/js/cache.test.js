import assert from "node:assert/strict";
import { test } from "node:test";

import { Cache, Metadata, limit } from "../../../lightning_geo/dashboard/static/api.js";

/** A cache of series of 100 floats whose loading the test ends. */
function setup(budget = 1e9) {
  const asked = [];
  let changes = 0;
  const load = (request, held) => new Promise((resolve, reject) => asked.push({ request, held, resolve: () => resolve({ steps: [asked.length], values: new Float32Array(100) }), reject }));
  return { asked, cache: new Cache(() => changes++, load, budget), changes: () => changes };
}
const settle = () => new Promise((resolve) => setTimeout(resolve, 0));

test("a metric is loaded once, and shown when it is here", async () => {
  const { asked, cache, changes } = setup();
  assert.equal(cache.get({ metric: "a" }, "1"), null);
  assert.equal(cache.get({ metric: "a" }, "1"), null);
  assert.equal(asked.length, 1);
  asked[0].resolve();
  await settle();
  assert.deepEqual([cache.get({ metric: "a" }, "1").steps, changes(), asked.length], [[1], 1, 1]);
});

test("the old is shown until the new is here", async () => {
  const { asked, cache } = setup();
  cache.get({ metric: "a" }, "1");
  asked[0].resolve();
  await settle();
  assert.deepEqual(cache.get({ metric: "a" }, "2").steps, [1]);
  assert.deepEqual(asked.map(({ held }) => held?.steps), [undefined, [1]]); // what is held need not come again
  asked[1].resolve();
  await settle();
  assert.deepEqual(cache.get({ metric: "a" }, "2").steps, [2]);
});

test("a failure is shown, but not in place of what was here", async () => {
  const { asked, cache } = setup();
  cache.get({ metric: "a" }, "1");
  asked[0].reject(new Error("gone"));
  await settle();
  assert.equal(cache.get({ metric: "a" }, "1").message, "gone");
  assert.equal(asked.length, 1); // not asked for again until there is something new, or TensorBoard is back
  cache.retry();
  cache.get({ metric: "a" }, "1");
  assert.equal(asked.length, 2);
  asked[1].resolve();
  await settle();
  cache.retry();
  assert.deepEqual(cache.get({ metric: "a" }, "1").steps, [2]);
  assert.equal(asked.length, 2);
  cache.get({ metric: "a" }, "3");
  asked[2].reject(new Error("gone"));
  await settle();
  assert.deepEqual(cache.get({ metric: "a" }, "3").steps, [2]);
});

test("the least recently used go when there are too many", async () => {
  const { asked, cache } = setup(1000);
  for (const metric of ["a", "b", "a", "c"]) {
    cache.get({ metric }, "1");
    asked.at(-1).resolve();
    await settle();
  }
  assert.deepEqual([...cache.entries.keys()].map((key) => JSON.parse(key).metric), ["a", "c"]);
  assert.equal(cache.bytes(), 800);
});

test("of a large metric fewer samples are asked for, never fewer than two", () => {
  assert.equal(limit(1000, 4_000_000), 1000);
  assert.equal(limit(80 * 64, 2 ** 10), 2);
});

test("metadata that could not be had is asked for again, but not before it is time to", async () => {
  const asked = [];
  const load = (run, monitor) => new Promise((resolve, reject) => asked.push({ run, monitor, resolve, reject }));
  const metadata = new Metadata(() => {}, load);
  assert.equal(metadata.get("run", "geometry"), null);
  asked[0].reject(new Error("503"));
  await settle();
  assert.deepEqual([metadata.get("run", "geometry"), metadata.get("run", "geometry"), asked.length], [{}, {}, 1]);
  metadata.retry();
  assert.deepEqual([metadata.get("run", "geometry"), metadata.get("run", "geometry"), asked.length], [{}, {}, 2]);
  asked[1].resolve({ step: 3 });
  await settle();
  metadata.retry();
  assert.deepEqual([metadata.get("run", "geometry"), asked.length], [{ step: 3 }, 2]);
});
