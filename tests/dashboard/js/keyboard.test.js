import assert from "node:assert/strict";
import { test } from "node:test";

import { moved } from "../../../lightning_geo/dashboard/static/cell_cursor.js";
import { next, stopOf } from "../../../lightning_geo/dashboard/static/roving.js";

const button = (pressed) => ({ getAttribute: () => pressed });

test("a cursor moves from cell to cell and stays in the map", () => {
  const at = (row, col) => ({ row, col });
  assert.deepEqual(moved(null, "ArrowDown", 3, 4), at(0, 0));
  assert.deepEqual(moved(at(0, 0), "ArrowDown", 3, 4), at(1, 0));
  assert.deepEqual(moved(at(2, 3), "ArrowDown", 3, 4), at(2, 3));
  assert.deepEqual(moved(at(2, 3), "ArrowRight", 3, 4), at(2, 3));
  assert.deepEqual(moved(at(1, 2), "Home", 3, 4), at(1, 0));
  assert.deepEqual(moved(at(1, 2), "End", 3, 4), at(1, 3));
  assert.deepEqual(moved(at(1, null), "ArrowRight", 3, 4), at(1, 1)); // a whole layer
});

test("Tab stops where the focus was, where the choice is, or at the first", () => {
  const [a, b, c] = [button("false"), button("true"), button("false")];
  assert.equal(stopOf([a, b, c], c), c);
  assert.equal(stopOf([a, b, c], null), b);
  assert.equal(stopOf([a, c], b), a);
  assert.equal(stopOf([], null), null);
});

test("the arrows go around the ends of a group", () => {
  assert.deepEqual([next(0, -1, 3), next(2, 1, 3), next(0, 1, 3)], [2, 0, 1]);
});
