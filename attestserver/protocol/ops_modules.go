package protocol

// Module is one kernel module that is loaded.
type Module struct {
	Name    string `json:"name"`
	BuildID string `json:"build_id"` // hex, of /sys/module/NAME/notes; empty where there is none
	Taint   string `json:"taint"`    // letters, empty for none
	State   string `json:"state"`    // Live, Loading or Unloading
}

// ModulesData is the answer of op modules.
type ModulesData struct {
	Modules  []Module `json:"modules"`   // of /proc/modules
	OnlySys  []string `json:"only_sys"`  // live in /sys/module, missing in /proc/modules
	OnlyProc []string `json:"only_proc"` // the other way round
}

// Check bounds the lists and strings.
func (d *ModulesData) Check() error {
	if err := atMost("modules", max(len(d.Modules), len(d.OnlySys), len(d.OnlyProc)), MaxModules); err != nil {
		return err
	}
	for _, m := range d.Modules {
		if err := short("module", m.Name, m.BuildID, m.Taint, m.State); err != nil {
			return err
		}
	}
	if err := short("module", d.OnlySys...); err != nil {
		return err
	}
	return short("module", d.OnlyProc...)
}
