// What a low and a high value of a metric look like, drawn: by stored name, or for all parts of a metric.

const pattern = (low, high) => [["pattern", low], ["pattern", high]];
const turned = (low, high) => [["turned", low], ["turned", high]];
const cloud = [["cloud", 0.08], ["cloud", 0.9]];
const fan = [["fan", 150], ["fan", 22]];
const lengths = [["lengths", 0.3], ["lengths", 1]];
const twins = [["twins", 0], ["twins", 1]];
const share = [["share", 0.08], ["share", 0.88]];
const backwards = ([low, high]) => [high, low];

export const EXAMPLES = {
  entropy: pattern("focused", "uniform"),
  normalized_entropy: pattern("focused", "uniform"),
  concentration: pattern("uniform", "focused"),
  max_probability: pattern("uniform", "focused"),
  max_logit: pattern("soft", "focused"),
  key_entropy: pattern("stripes", "focused"),
  learned_sink_mass: pattern("soft", "sink"),
  self_mass: pattern("uniform", "self"),
  previous_mass: pattern("uniform", "previous"),
  next_mass: pattern("uniform", "next"),
  first_mass: pattern("uniform", "first"),
  backward_mass: pattern("ahead", "back"),
  forward_mass: pattern("back", "ahead"),
  attention_distance: pattern("near", "far"),
  special_mass: pattern("text", "special"),
  cone: fan,
  cone_index: fan,
  mean_cosine: fan,
  effective_rank: cloud,
  participation_ratio: cloud,
  stable_rank: cloud,
  top_share: backwards(cloud),
  qk_alignment: turned(85, 8),
  drift: turned(8, 85),
  velocity: turned(4, 40),
  query_norm: lengths,
  key_norm: lengths,
  qk_cosine: [["leaning", 180], ["leaning", 15]],
  hidden_norm: lengths,
  skewness: [["histogram", "left"], ["histogram", "right"]],
  kurtosis: [["histogram", "normal"], ["histogram", "outliers"]],
  update_ratio: turned(4, 70),
  redundancy: twins,
  complementarity: backwards(twins),
  update_size: turned(3, 30),
  unchanged_share: share,
  bf16_share: share,
  weight_similarity: twins,
  future_visible: pattern("causal", "uniform"),
  padding_visible: pattern("unpadded", "uniform"),
  symmetry: [["matrix", "antisymmetric"], ["matrix", "symmetric"]],
  layer_symmetry: [["matrix", "antisymmetric"], ["matrix", "symmetric"]],
  directionality: [["matrix", "rows"], ["matrix", "columns"]],
  layer_directionality: [["matrix", "rows"], ["matrix", "columns"]],
  qk_effective_rank: cloud,
  qk_stable_rank: cloud,
  qk_norm: lengths,
  ov_effective_rank: cloud,
  ov_stable_rank: cloud,
  ov_norm: lengths,
  read_overlap: twins,
  write_overlap: twins,
  weight_drift: turned(4, 85),
  projection_strength: turned(80, 12),
  query_value_angle: turned(8, 85),
  key_value_angle: turned(8, 85),
  "gate.open": pattern("focused", "uniform"),
  "gate.closed": pattern("text", "special"),
  "gate.instance": pattern("uniform", "self"),
  "gate.backward": pattern("uniform", "previous"),
  "gate.forward": pattern("uniform", "next"),
  "gate.directional": pattern("focused", "stripes"),
  "gate.cluster": pattern("focused", "groups"),
  gate_count: share,
  score_entropy: [["histogram", "outliers"], ["histogram", "even"]],
  von_neumann_entropy: cloud,
};

/** The two pictures of a metric, or null: a number that no picture shows, or a metric that is not built in. */
export function examplesOf({ name, base }) {
  const own = (key) => (Object.hasOwn(EXAMPLES, key) ? EXAMPLES[key] : null);
  return own(name) ?? own(base);
}
