package expect

import (
	"fmt"
	"slices"
	"strings"

	"portcullis/attestserver/protocol"
)

// noteHelpers is the note of a boot session with the kernel's helpers.
const noteHelpers = "boot.helpers"

// kernelHelpers are the helpers that nothing of an image changes: as Debian's kernel has
// them, or the same program under its other name. Nobody is started where there is none.
var kernelHelpers = map[string][]string{
	protocol.HelperModprobe: {"/sbin/modprobe", "/usr/sbin/modprobe", ""},
	protocol.HelperPoweroff: {"/sbin/poweroff", "/usr/sbin/poweroff", ""},
}

// noCores is what systemd sets at the very beginning, until it has read its settings, and again when the
// machine goes down.
const noCores = "|/bin/false"

// helpers judges the programs that the kernel starts by itself. Where a core goes may
// be set while the machine starts (systemd does), but only a program of the image may be
// given one; after that nothing changes it.
func (e *Boot) helpers(j *judge, st *protocol.ImageState, d *protocol.BootData) error {
	bad, none := false, false
	for _, h := range d.Helpers {
		ok := slices.Contains(kernelHelpers[h.Name], h.Value)
		if h.Name == protocol.HelperCore {
			none = h.Value == noCores
			var err error
			if ok, err = e.takesCores(h.Value); err != nil {
				return err
			}
		}
		if !ok {
			j.fatal(ReasonHelper, "%s is %.200q", h.Name, h.Value)
			bad = true
		}
	}
	if bad {
		return nil
	}
	if st.Notes == nil {
		st.Notes = map[string][]byte{}
	}
	now := fmt.Sprintf("%.600q", d.Helpers)
	if old, ok := st.Notes[noteHelpers]; ok && string(old) != now && d.UptimeMs >= settle.Milliseconds() {
		if none {
			return nil // and what was stays what it must be
		}
		j.fatal(ReasonHelper, "they are %s, were %s", now, old)
		return nil
	}
	st.Notes[noteHelpers] = []byte(now)
	return nil
}

// takesCores tells whether a core goes into a file, or to a program of the image (core(5)).
func (e *Boot) takesCores(pattern string) (bool, error) {
	command, piped := strings.CutPrefix(pattern, "|")
	if !piped || pattern == noCores {
		return true, nil
	}
	program, _, _ := strings.Cut(command, " ")
	for _, dir := range []string{"/bin/", "/lib/", "/sbin/"} { // links into /usr, which are not followed
		if strings.HasPrefix(program, dir) {
			program = "/usr" + program
			break
		}
	}
	_, found, err := e.inImage(program)
	return found, err
}
