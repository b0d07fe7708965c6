// The views by name, in the order of the tabs.

import { MapView } from "./view_map.js";

export const VIEW_TYPES = { map: MapView };
