package identity

import (
	"fmt"
	"testing"

	"portcullis/hardware/tpm2"
	"portcullis/images/card"
)

func TestDifferences(t *testing.T) {
	record := func(change func(*Record)) *Record {
		r := &Record{Schema: Schema, GatewayKey: make([]byte, 32), Booted: &Boot{Volume: "v", VolumePCR: "aa"},
			Chip: &Chip{Enrolment: tpm2.Enrolment{EK: []byte("ek"), AK: []byte("ak")}}, Enrolled: &card.Enrolment{Volume: "v", VolumePCR: "aa"}}
		if change != nil {
			change(r)
		}
		return r
	}
	for name, c := range map[string]struct {
		kept, now func(*Record)
		want      string
	}{
		"the same":                {nil, nil, "[]"},
		"nothing was kept":        {func(r *Record) { *r = Record{} }, nil, "[]"},
		"another volume":          {nil, func(r *Record) { r.Booted.Volume, r.Booted.VolumePCR = "w", "bb" }, "[volume was v and is w volume_pcr was aa and is bb]"},
		"its record alone edited": {nil, func(r *Record) { r.Enrolled = &card.Enrolment{Volume: "v", VolumePCR: "cc"} }, "[]"},
		"same UUID, another key":  {nil, func(r *Record) { r.Booted.VolumePCR = "bb" }, "[volume_pcr was aa and is bb]"},
		"kept at enrolment":       {func(r *Record) { r.Booted = nil }, func(r *Record) { r.Booted.VolumePCR = "bb" }, "[volume_pcr was aa and is bb]"},
		"not started by pi-init":  {nil, func(r *Record) { r.Booted, r.Enrolled = nil, nil }, "[volume was v and is none volume_pcr was aa and is none]"},
		"another chip":            {nil, func(r *Record) { r.Chip.AK = []byte("AK") }, "[ak was YWs= and is QUs=]"},
		"no chip":                 {nil, func(r *Record) { r.Chip = nil }, "[ak was YWs= and is none ek was ZWs= and is none]"},
		"no gateway key":          {func(r *Record) { r.Chip = nil; r.GatewayKey = []byte("k") }, func(r *Record) { r.GatewayKey = nil }, "[gateway_key was aw== and is none]"},
	} {
		if got := fmt.Sprint(record(c.now).Differences(record(c.kept))); got != c.want {
			t.Errorf("%s: %s instead of %s", name, got, c.want)
		}
	}
	for want, r := range map[bool]*Record{
		true:  record(func(r *Record) { r.Booted.VolumePCR = "bb" }),
		false: record(func(r *Record) { r.Enrolled.VolumePCR = "" }),
	} {
		if r.VolumeChanged() != want {
			t.Errorf("%+v: %t", r.Booted, !want)
		}
	}
}
