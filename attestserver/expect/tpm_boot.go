package expect

import (
	"encoding/hex"
	"slices"
	"strconv"

	"portcullis/attestserver/eventlog"
	"portcullis/attestserver/protocol"
	"portcullis/hardware/tpmattest"
)

// What each register must be. Those of the firmware are pinned at enrolment.
var (
	pinnedRegisters    = []int{0, 2, 7}
	predictedRegisters = []int{9, 11, 12}
	loggedRegisters    = []int{0, 2, 4, 7, 8, 9, 11, 12} // the log must lead to these
)

// registers holds the registers against the image, the log and the reference. After
// the log was judged once in a session they must not change any more, but for IMA's.
func (e *Tpm) registers(j *judge, s *tpmNote, ref *tpmReference, q *protocol.TpmParams, d *protocol.TpmData, quoted *tpmattest.Quoted) {
	now := map[int]eventlog.Digest{}
	for _, i := range loggedRegisters {
		now[i] = eventlog.Digest(quoted.PCRs[i])
	}
	if s.Registers != nil {
		for _, i := range loggedRegisters {
			if now[i] != eventlog.Digest(s.Registers[i]) {
				j.fatal(ReasonTpmRegister, "register %d was extended after the boot", i)
			}
		}
		return
	}
	before := len(j.list)
	for _, i := range predictedRegisters {
		if want := e.Manifest.PCR[strconv.Itoa(i)]; hex.EncodeToString(bytesOf(quoted.PCRs[i])) != want {
			j.fatal(ReasonTpmRegister, "register %d is %x, the image predicts %.16s", i, bytesOf(quoted.PCRs[i])[:8], want)
		}
	}
	if now[8] != (eventlog.Digest{}) {
		j.fatal(ReasonTpmRegister, "register 8 is not empty: a boot loader was in between")
	}
	log, err := eventlog.Parse(d.Log)
	if err == nil {
		err = log.Check(now, loggedRegisters...)
	}
	var programs []eventlog.Digest
	if err == nil {
		programs, err = log.Applications()
	}
	if err != nil {
		j.fatal(ReasonTpmLog, "%v", err)
		return
	}
	e.programs(j, programs)
	firmware := map[int][]string{}
	for _, i := range pinnedRegisters {
		for _, digest := range log.Digests(i) {
			firmware[i] = append(firmware[i], hex.EncodeToString(digest[:8]))
		}
	}
	if ref != nil {
		ref.compare(j, now, firmware)
	}
	if len(j.list) == before {
		s.Registers, s.Firmware = map[int]tpmattest.Register{}, firmware
		for _, i := range loggedRegisters {
			s.Registers[i] = quoted.PCRs[i]
		}
	}
}

func bytesOf(r tpmattest.Register) []byte { return r[:] }

// programs judges what firmware loaded: the image, once or more (iPXE loads it
// twice), then the kernel in it, and nothing else. This is the register that the
// software which was loaded cannot fake: it has been extended before that runs.
func (e *Tpm) programs(j *judge, programs []eventlog.Digest) {
	image, kernel := e.Manifest.UKI.Authenticode, e.Manifest.UKI.LinuxAuthenticode
	for n, p := range programs {
		have := hex.EncodeToString(p[:])
		if last := n == len(programs)-1; (last && have != kernel) || (!last && have != image) {
			j.fatal(ReasonTpmProgram, "firmware loaded %.16s as program %d of %d; the image is %.16s, its kernel %.16s", have, n+1, len(programs), image, kernel)
			return
		}
	}
	if len(programs) < 2 {
		j.fatal(ReasonTpmProgram, "firmware loaded %d programs, not the image and its kernel", len(programs))
	}
}

// compare names the first event of the firmware that is not as it was enrolled.
func (r *tpmReference) compare(j *judge, now map[int]eventlog.Digest, firmware map[int][]string) {
	for _, i := range pinnedRegisters {
		if now[i] == eventlog.Digest(r.Registers[i]) {
			continue
		}
		at := 0
		for at < min(len(firmware[i]), len(r.Firmware[i])) && firmware[i][at] == r.Firmware[i][at] {
			at++
		}
		missing := slices.Concat(r.Firmware[i][min(at, len(r.Firmware[i])):], []string{"none"})[0]
		j.fatal(ReasonTpmFirmware, "register %d is not as enrolled: event %d of %d differs, was %s of %d", i, at+1, len(firmware[i]), missing, len(r.Firmware[i]))
	}
}
