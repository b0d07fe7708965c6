import assert from "node:assert/strict";
import { test } from "node:test";

import { decodeHead, encodeHead, gateOf, headIn, named, shownAt, span, told, twinAt } from "../../../lightning_geo/dashboard/static/patterns.js";

function sent(header, codes) {
  const text = new TextEncoder().encode(JSON.stringify(header));
  const padded = new Uint8Array(4 + Math.ceil(text.length / 4) * 4 + codes.length).fill(32);
  new DataView(padded.buffer).setUint32(0, padded.length - codes.length - 4, true);
  padded.set(text, 4);
  padded.set(codes, padded.length - codes.length);
  return padded.buffer;
}

test("bytes become the root of attention, 255 has no value, words go to their sample", () => {
  const header = { samples: [{ step: 0, side: 1, length: 1, tokens: -1 }, { step: 9, side: 2, length: 2, tokens: 0 }], tokens: [["[CLS]", "<b>"]], twins: [], kept: true };
  const { samples, kept } = decodeHead(sent(header, [254, 0, 127, 255, 254]));
  assert.deepEqual(samples.map(({ step, words }) => [step, words]), [[0, null], [9, ["[CLS]", "<b>"]]]);
  assert.deepEqual([...samples[1].roots], [0, 0.5, NaN, 1]);
  assert.equal(kept, true);
  assert.deepEqual(told({ row: 0, col: 1 }, samples[1]), ["query 0 “[CLS]”", "key 1 “<b>”", 0.25]);
});

test("a block has the tokens k with floor(k side / length) = cell", () => {
  for (const [side, length] of [[32, 33], [32, 64], [32, 127], [5, 5], [3, 7]]) {
    for (let cell = 0; cell < side; cell++) {
      const own = Array.from({ length }, (_, k) => k).filter((k) => Math.floor((k * side) / length) === cell);
      assert.deepEqual(span(cell, { side, length }), [own[0], own[own.length - 1]]);
    }
  }
  const words = Array.from({ length: 64 }, (_, i) => `w${i}`);
  assert.equal(named(3, { side: 32, length: 64, words }), "6–7 “w6 w7”");
  assert.equal(named(3, { side: 32, length: 64, words: null }), "6–7");
});

test("the first, the nearest and the last sample are shown", () => {
  const samples = [0, 40, 90].map((step) => ({ step }));
  assert.deepEqual(shownAt({ samples }, 55).map(([{ step }]) => step), [0, 40, 90]);
  assert.deepEqual(shownAt({ samples }, 1000).map(([{ step }]) => step), [0, 90, 90]);
  assert.deepEqual(shownAt({ samples: samples.slice(0, 1) }, 5).length, 1);
  assert.deepEqual(shownAt({ samples: [] }, 5), []);
});

test("a gate is the largest margin, mixed where none is positive, nothing where one is missing", () => {
  const margins = { open: -0.1, closed: 0.2, instance: -1, backward: 0.1, forward: -1, directional: -1, cluster: -1 };
  assert.equal(gateOf(margins), "closed");
  assert.equal(gateOf({ ...margins, closed: -0.2, backward: -0.3 }), "mixed");
  assert.equal(gateOf({ ...margins, cluster: undefined }), "");
  assert.equal(gateOf({ ...margins, cluster: null }), "");
});

test("a twin is that of the nearest sample that says which", () => {
  const twins = [{ step: 0, head: 1 }, { step: 60, head: 7 }];
  assert.equal(twinAt({ twins }, 20).head, 1);
  assert.equal(twinAt({ twins }, 50).head, 7);
  assert.equal(twinAt({ twins: [] }, 50), null);
});

test("a head in an address comes back, and nothing else does", () => {
  assert.deepEqual(headIn(encodeHead({ layer: 5, head: 11 })), { layer: 5, head: 11 });
  for (const text of [null, "", "5", "5.", "a.b", "1.2.3", "99999.1"]) assert.equal(headIn(text), null);
});
