// The views by name, in the order of the tabs.

import { CompareView } from "./view_compare.js";
import { EvolutionView } from "./view_evolution.js";
import { MapView } from "./view_map.js";
import { OverviewView } from "./view_overview.js";
import { RunsView } from "./view_runs.js";
import { SummaryView } from "./view_summary.js";
import { TraceView } from "./view_trace.js";

export const VIEW_TYPES = { summary: SummaryView, map: MapView, compare: CompareView, runs: RunsView, trace: TraceView, evolution: EvolutionView, overview: OverviewView };
