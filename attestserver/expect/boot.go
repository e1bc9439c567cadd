package expect

import (
	"encoding/binary"
	"io"
	"slices"
	"strings"

	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
)

// Boot is the twin of probe.Boot.
type Boot struct{ user }

// Name implements protocol.Expectation.
func (*Boot) Name() string { return protocol.OpBoot }

// Params implements protocol.Expectation.
func (*Boot) Params(io.Reader, *protocol.ImageState) ([]byte, error) { return protocol.None, nil }

// Judge implements protocol.Expectation.
func (e *Boot) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.BootData
	if !j.read(in, &d) {
		return j.list
	}
	if !sameCmdline(d.Cmdline, e.Manifest.Cmdline) {
		j.fatal(ReasonCmdline, "booted with %q", d.Cmdline)
	}
	if d.Release != e.kernel.release || d.Notes != e.kernel.notes {
		j.fatal(ReasonKernel, "kernel %s with notes %.16s, signed is %s with notes %.16s", d.Release, d.Notes, e.kernel.release, e.kernel.notes)
	}
	if d.Lockdown != "integrity" {
		j.fatal(ReasonLockdown, "lockdown is %q, want integrity", d.Lockdown)
	}
	e.securityModules(j, in.State, d.LSM)
	if d.KexecLoaded {
		j.fatal(ReasonKexec, "another kernel is loaded by kexec")
	}
	if bad := d.Tainted & taintFatal; bad != 0 {
		j.fatal(ReasonTainted, "tainted is %d, of which %d must not be", d.Tainted, bad)
	} else if d.Tainted != 0 {
		j.add(protocol.Info, ReasonTaintedInfo, "tainted is %d", d.Tainted)
	}
	for _, t := range d.Traced {
		j.fatal(ReasonTraced, "%s", t)
	}
	e.doors(j, d.Doors)
	if err := e.helpers(j, in.State, &d); err != nil {
		j.unjudged(err)
	}
	e.sameBoot(j, in.State, &d)
	return j.list
}

// builtWithout is the option of the kernel's configuration that makes each door.
var builtWithout = map[string]string{protocol.DoorDebugfs: ktextmask.DebugFS, protocol.DoorKexec: ktextmask.Kexec,
	protocol.DoorModules: ktextmask.Modules, protocol.DoorTracefs: ktextmask.Ftrace}

// doors holds what the kernel shows of itself against the signed kernel's own
// configuration: what it was built without must be absent, what it has cannot be.
func (e *Boot) doors(j *judge, have []string) {
	for _, door := range protocol.Doors {
		switch there, built := slices.Contains(have, door), !slices.Contains(e.kernel.without, builtWithout[door]); {
		case there && !built:
			j.fatal(ReasonDoor, "%s is there, and the signed kernel was built without", door)
		case !there && built:
			j.fatal(ReasonDoor, "%s is not there, and the signed kernel has it", door)
		}
	}
}

// Taint bits that only a changed system has (Documentation/admin-guide/tainted-kernels.rst):
// proprietary, forced and force-unloaded modules, taint by user space, staging
// drivers, modules from outside, unsigned modules, live patches, test modules.
// The others tell of faults: of the hardware, of the firmware, of the kernel.
const taintFatal = 1<<0 | 1<<1 | 1<<3 | 1<<6 | 1<<10 | 1<<12 | 1<<13 | 1<<15 | 1<<18

// sameCmdline compares with the signed command line. iPXE's loader adds the
// name of the initrd to what it was given; nothing else may be there.
func sameCmdline(have, signed string) bool {
	have, signed = strings.TrimSpace(have), strings.TrimSpace(signed)
	return have == signed || have == signed+" initrd=initrd" || have == "initrd=initrd "+signed
}

// sameBoot holds the session to one boot of one kernel: its boot id stays and
// its clock goes on.
func (e *Boot) sameBoot(j *judge, st *protocol.ImageState, d *protocol.BootData) {
	if st.Notes == nil {
		st.Notes = map[string][]byte{}
	}
	if old := st.Notes[e.Name()]; len(old) > 8 {
		if string(old[8:]) != d.BootID {
			j.fatal(ReasonBootID, "boot id %.40q, was %.40q", d.BootID, old[8:])
		}
		if before := int64(binary.BigEndian.Uint64(old)); d.UptimeMs < before {
			j.fatal(ReasonUptime, "up for %d ms, was up for %d ms", d.UptimeMs, before)
		}
		if len(j.list) > 0 {
			return
		}
	}
	st.Notes[e.Name()] = append(binary.BigEndian.AppendUint64(nil, uint64(d.UptimeMs)), d.BootID...)
}

// noteLSM is the note with the security modules of the boot.
const noteLSM = "boot.lsm"

// securityModules judges the list of security modules. The kernel makes it when it
// starts, from its configuration and the command line, and nothing changes it later.
func (*Boot) securityModules(j *judge, st *protocol.ImageState, list string) {
	if st.Notes == nil {
		st.Notes = map[string][]byte{}
	}
	for _, m := range []string{"capability", "lockdown"} {
		if !slices.Contains(strings.Split(list, ","), m) {
			j.fatal(ReasonLSM, "%s is not among %.200q", m, list)
		}
	}
	if old, ok := st.Notes[noteLSM]; ok && string(old) != list {
		j.fatal(ReasonLSM, "they are %.200q, were %.200q", list, old)
		return
	}
	st.Notes[noteLSM] = []byte(list)
}
