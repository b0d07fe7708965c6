import assert from "node:assert/strict";
import { test } from "node:test";

import { csv, labelled, middle, number, signed, ticks, withUnit } from "../../../lightning_geo/dashboard/static/format.js";

test("numbers have three digits, and what is absent is said", () => {
  assert.deepEqual([0, 3.14159, -0.5, 12345.6, 1e-5, NaN, Infinity].map(number), ["0", "3.14", "−0.5", "12,346", "1.00e−5", "absent", "absent"]);
  assert.deepEqual([0.25, -0.25, 0].map(signed), ["+0.25", "−0.25", "0"]);
  assert.deepEqual([withUnit("3", "nats"), withUnit("3", "1")], ["3 nats", "3"]);
});

test("long names are cut in the middle", () => {
  assert.equal(middle("a".repeat(36)), "a".repeat(36));
  assert.equal(middle(`${"a".repeat(20)}/lr_0.03/version_0👍`, 20), `${"a".repeat(12)}…sion_0👍`);
});

test("ticks are round and within", () => {
  assert.deepEqual(ticks(0, 1, 5), [0, 0.2, 0.4, 0.6, 0.8, 1]);
  assert.deepEqual(ticks(-3, 17, 4), [0, 5, 10, 15]);
  assert.deepEqual(ticks(2, 2, 4), [2]);
});

test("labels keep their distance at round numbers", () => {
  assert.deepEqual(labelled(6, 20, 13), [0, 1, 2, 3, 4, 5]);
  assert.deepEqual(labelled(6, 8, 13), [0, 2, 4]);
  assert.deepEqual(labelled(12, 3, 13), [0, 5, 10]);
  assert.deepEqual(labelled(40, 1, 13), [0, 20]);
});

test("a CSV file quotes what it must and is no program of a spreadsheet", () => {
  const rows = [["run", "value"], ['a "b", c', 0.5], ["=HYPERLINK(1)", NaN], ["-x", -2]];
  assert.equal(csv(rows), 'run,value\r\n"a ""b"", c",0.5\r\n\'=HYPERLINK(1),\r\n\'-x,-2\r\n');
});
