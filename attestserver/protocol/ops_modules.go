package protocol

import (
	"errors"
	"fmt"
)

// Limits of what op modules asks of the modules' text.
const (
	MaxModuleAsks     = 256      // modules in one question
	MaxModuleSections = 512      // of one module
	MaxModuleText     = 32 << 20 // bytes of one section
	MaxModulePieces   = 256      // pieces that are sent whole, in one question
	MaxModulePiece    = 8 << 10  // bytes of one
	ModuleSumSize     = 32       // characters of ModuleText.Sum
)

// ModulesParams names the modules whose text is read. {} asks for the list alone.
type ModulesParams struct {
	Modules []ModuleAsk `json:"modules"`
}

// ModuleAsk asks for a module's text.
type ModuleAsk struct {
	Name   string        `json:"name"`
	Text   []ModulePart  `json:"text"`   // what is read: sections and how large they are
	Layout bool          `json:"layout"` // wanted: the addresses of all sections
	Pieces []ModulePiece `json:"pieces"` // wanted: these bytes
}

// ModulePart is a section.
type ModulePart struct {
	Name string `json:"name"`
	Size uint64 `json:"size"` // bytes
}

// ModulePiece is a piece of a section.
type ModulePiece struct {
	Part   int    `json:"part"` // index of ModuleAsk.Text
	Offset uint64 `json:"offset"`
	Size   uint64 `json:"size"` // bytes
}

// Check bounds the lists and numbers.
func (p *ModulesParams) Check() error {
	if err := atMost("modules", len(p.Modules), MaxModuleAsks); err != nil {
		return err
	}
	pieces := 0
	for _, m := range p.Modules {
		if m.Name == "" || m.Name == "." || m.Name == ".." || len(m.Name) > 64 {
			return fmt.Errorf("module %.80q", m.Name)
		}
		if err := atMost("sections", len(m.Text), MaxModuleSections); err != nil {
			return err
		}
		for _, s := range m.Text {
			if s.Name == "" || s.Name == "." || s.Name == ".." || len(s.Name) > 256 || s.Size > MaxModuleText {
				return fmt.Errorf("section %.80q of %d bytes", s.Name, s.Size)
			}
		}
		if pieces += len(m.Pieces); pieces > MaxModulePieces {
			return fmt.Errorf("more than %d pieces", MaxModulePieces)
		}
		for _, x := range m.Pieces {
			if x.Part < 0 || x.Part >= len(m.Text) || x.Size > MaxModulePiece || x.Offset > m.Text[x.Part].Size || x.Size > m.Text[x.Part].Size-x.Offset {
				return errors.New("a piece outside of its section")
			}
		}
	}
	return nil
}

// Module is one kernel module that is loaded.
type Module struct {
	Name    string `json:"name"`
	BuildID string `json:"build_id"` // hex, of /sys/module/NAME/notes; empty where there is none
	Taint   string `json:"taint"`    // letters, empty for none
	State   string `json:"state"`    // Live, Loading or Unloading
}

// ModuleText is what was read of a module's text.
type ModuleText struct {
	Name string `json:"name"`
	// Sum is the first half of SHA-256 in hex over each section that was asked for: its
	// address and size (64 bits each, little-endian) and its bytes. Empty where the
	// module could not be read: it is gone.
	Sum    string          `json:"sum"`
	Layout []ModuleSection `json:"layout"` // where it was asked for
}

// ModuleSection is a section and its address.
type ModuleSection struct {
	Name    string `json:"name"`
	Address uint64 `json:"address"`
}

// ModulesData is the answer of op modules.
type ModulesData struct {
	Modules  []Module     `json:"modules"`   // of /proc/modules
	OnlySys  []string     `json:"only_sys"`  // live in /sys/module, missing in /proc/modules
	OnlyProc []string     `json:"only_proc"` // the other way round
	Text     []ModuleText `json:"text"`      // of what was asked for, in that order
	Raw      []byte       `json:"raw"`       // one zstd frame: the pieces of those that could be read, in that order
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
	if err := atMost("modules with text", len(d.Text), MaxModuleAsks); err != nil {
		return err
	}
	for _, t := range d.Text {
		if err := atMost("sections", len(t.Layout), MaxModuleSections); err != nil {
			return err
		}
		if len(t.Sum) != 0 && len(t.Sum) != ModuleSumSize {
			return fmt.Errorf("module text: sum of %d characters", len(t.Sum))
		}
		if err := short("module text", t.Name); err != nil {
			return err
		}
		for _, s := range t.Layout {
			if err := short("module section", s.Name); err != nil {
				return err
			}
		}
	}
	if err := short("module", d.OnlySys...); err != nil {
		return err
	}
	return short("module", d.OnlyProc...)
}
