package identity

import (
	"encoding/base64"
	"fmt"
)

// Difference is one thing that is not as it was.
type Difference struct {
	Field string `json:"field"` // of the record
	Kept  string `json:"kept"`
	Now   string `json:"now"` // "none" where it is gone
}

func (d Difference) String() string {
	return fmt.Sprintf("%s was %s and is %s", d.Field, d.Kept, d.Now)
}

// Differences compares the record of this Pi with one that was kept elsewhere, where
// nobody who had the Pi could rewrite it. What the kept one does not hold is not
// compared. Another volume in the place of ours shows here, also one that opens with
// this very chip: its key gives register 15 another value.
func (r *Record) Differences(kept *Record) []Difference {
	var out []Difference
	compare := func(field, was, is string) {
		if was != "" && was != is {
			if is == "" {
				is = "none"
			}
			out = append(out, Difference{field, was, is})
		}
	}
	compare("gateway_key", encoded(kept.GatewayKey), encoded(r.GatewayKey))
	was, is := kept.volume(), r.volume()
	compare("volume", was.uuid, is.uuid)
	compare("volume_pcr", was.pcr, is.pcr)
	if c := kept.Chip; c != nil {
		now := r.Chip
		if now == nil {
			now = &Chip{}
		}
		compare("ak", encoded(c.AK), encoded(now.AK))
		compare("ek", encoded(c.EK), encoded(now.EK))
	}
	return out
}

func encoded(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	return base64.StdEncoding.EncodeToString(b)
}

type volume struct{ uuid, pcr string }

// volume is that of the boot, or, in a record that no boot is known of, that of the enrolment.
func (r *Record) volume() volume {
	if b := r.Booted; b != nil && b.Volume != "" {
		return volume{b.Volume, b.VolumePCR}
	}
	if e := r.Enrolled; e != nil {
		return volume{e.Volume, e.VolumePCR}
	}
	return volume{}
}

// VolumeChanged says that the open volume is not the one that first boot wrote down on
// the card. That record is in the clear: who changes the volume can change it too, and
// only a record that was kept elsewhere is worth something.
func (r *Record) VolumeChanged() bool {
	b, e := r.Booted, r.Enrolled
	return b != nil && e != nil && b.Volume != "" && (b.Volume != e.Volume || e.VolumePCR != "" && b.VolumePCR != e.VolumePCR)
}
