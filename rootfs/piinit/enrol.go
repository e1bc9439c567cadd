package piinit

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"io"
	"strconv"
	"time"

	"portcullis/hardware"
	"portcullis/hardware/escrow"
	"portcullis/hardware/tpm2"
	"portcullis/images/card"
	"portcullis/images/luks2"
	"portcullis/rootfs/boot"
)

// volumeLabel is the LUKS2 label of a volume that was enrolled here.
const volumeLabel = "portcullis"

// enrolment is a first boot under way. Nothing of it is valid before commit.
type enrolment struct {
	b        *Boot
	operator *escrow.Recipient // nil: a person at the console goes on without escrow
	random   io.Reader         // the kernel's and the chip's
	key      []byte            // volume key
	secret   []byte            // what the chip is to keep
	header   *luks2.Header
	token    int // number of our token
	chipSlot int
	space    Space
	blob     json.RawMessage
}

// firstBoot enrols the card. A power cut at any moment ends in this function again,
// from its beginning, or in a committed card.
func (b *Boot) firstBoot(ctx context.Context, headerGone bool) (Space, error) {
	b.begin(StagePosture)
	if err := b.choose(ctx); err != nil {
		return nil, err
	}
	e := &enrolment{b: b, random: &mixer{ctx: ctx, kernel: b.Random, chip: b.keeper}}
	defer e.wipe()
	for _, step := range []struct {
		stage string
		run   func(context.Context) error
	}{
		{StageEnrolOperator, func(ctx context.Context) error { return e.permit(ctx, headerGone) }},
		{StageEnrolGrow, e.grow},
		{StageEnrolFormat, e.format},
		{StageEnrolCopy, e.copySystem},
		{StageEnrolVerify, e.verify},
		{StageEnrolSeal, e.seal},
		{StageEnrolData, e.data},
		{StageEnrolRecovery, e.recovery},
		{StageEnrolCommit, e.commit},
	} {
		b.begin(step.stage)
		if err := step.run(ctx); err != nil {
			return nil, err
		}
	}
	b.hand.FirstBoot, b.hand.UnlockedBy = true, card.UnlockedByEnrol
	return e.space, nil
}

func (e *enrolment) wipe() {
	clear(e.key)
	clear(e.secret)
}

// permit makes sure that somebody will be able to open the volume when this Pi's
// chip is gone: the operator by the escrow, or a person who reads the recovery key
// off this console now. And that nothing is wiped that was enrolled before.
func (e *enrolment) permit(ctx context.Context, headerGone bool) error {
	b := e.b
	before, err := b.conf.Enrol()
	if err != nil {
		return err
	}
	if before != nil && headerGone {
		// The record is written behind the first header and cleared before it is
		// made anew: with the record and without any header, a finished volume
		// has lost both. Somebody may have a copy of it elsewhere.
		if !b.confirm(ctx, "this card was enrolled, and both headers of its encrypted volume are gone", "give up what is on it and start over") {
			return boot.Failf(ReasonLost, "both LUKS2 headers are gone; put a header backup back, or write the card anew")
		}
	}
	if seed, _ := b.seed(); seed != nil && seed.OperatorKey != "" {
		if e.operator, err = escrow.ParseRecipient(seed.OperatorKey); err != nil {
			return err
		}
		b.Log.Stage(b.stage, "operator", e.operator)
	} else {
		if !b.confirm(ctx, "no operator key on the card", "go on without escrow") {
			return boot.Failf(ReasonOperator, "no operator key on the card and nobody at the console; put operator_key into the seed: portcullis flash --seed")
		}
		b.Log.Stage(b.stage, "operator", "none", "agreed", "console")
	}
	e.lookBack(ctx)
	return b.conf.WriteEnrol(nil)
}

// lookBack tells when the chip has served before. A card without headers and without a
// record looks like a new one, also where somebody has wiped both; the chip is not on
// the card. Only a finished enrolment leaves an attestation key in the chip: one that
// was cut off is none.
func (e *enrolment) lookBack(ctx context.Context) {
	b := e.b
	if b.tpm == nil {
		return // a Zymbit module keeps no count
	}
	past, err := b.tpm.Past(ctx)
	if err != nil {
		b.Log.Note("past", "problem", err)
		return
	}
	if b.hand.ReEnrolled = past.Attested; b.hand.ReEnrolled {
		b.Log.Note("re-enrolled", "detail", "this Pi's chip has kept the key of a card before: if you did not put in a new or newly written card, somebody has wiped yours",
			"released", past.Released)
	}
}

// grow gives the encrypted partition the rest of the card.
func (e *enrolment) grow(ctx context.Context) error {
	b := e.b
	t, _, err := b.card.Table()
	if err != nil {
		return err
	}
	sectors := uint64(b.card.Size() / card.SectorSize)
	if t.Sectors < sectors {
		if err := t.Grow(sectors); err != nil {
			return err
		}
		if err := b.card.WriteTable(ctx, t); err != nil {
			return err
		}
	}
	if b.crypt, err = b.card.Partition(card.PartCrypt); err != nil {
		return err
	}
	if need := int64(card.CryptHeader + 2*card.SystemSize + card.MinData); b.crypt.Size() < need {
		return boot.Failf(ReasonCardSmall, "the encrypted partition has %d MiB, %d are the least: use a card of 2 GB or more", b.crypt.Size()>>20, need>>20)
	}
	b.Log.Stage(b.stage, "card_mib", b.card.Size()>>20, "volume_mib", b.crypt.Size()>>20)
	return nil
}

// format makes an empty volume under a new key, which so far only a secret in
// memory opens.
func (e *enrolment) format(ctx context.Context) error {
	b := e.b
	// What the chip has against this release is better known before minutes are spent.
	if usesTPM(b.backend) {
		if err := b.tpm.RaiseCounter(ctx, b.Info.Sequence); err != nil {
			return err
		}
	}
	e.key, e.secret = make([]byte, luks2.VolumeKeySize), make([]byte, card.ChipSecretSize)
	for _, secret := range [][]byte{e.key, e.secret} {
		if _, err := io.ReadFull(e.random, secret); err != nil {
			return err
		}
	}
	var err error
	if e.header, err = luks2.Format(b.crypt, b.crypt.Size(), luks2.Options{Label: volumeLabel}, e.key); err != nil {
		return err
	}
	pass := card.ChipPassphrase(e.secret)
	defer clear(pass)
	if e.chipSlot, err = e.header.AddSlot(b.crypt, e.key, pass, luks2.ForChip()); err != nil {
		return err
	}
	e.token = -1
	if err := e.setToken(hardware.StateEnrolling, json.RawMessage("{}")); err != nil {
		return err
	}
	if err := e.header.Write(b.crypt); err != nil {
		return err
	}
	// As every later boot will.
	v, err := b.tryPassphrase(e.header, pass, []int{e.chipSlot})
	if err != nil {
		return err
	}
	defer v.wipe()
	if e.space, err = b.Host.Map(v.header, v.key); err != nil {
		return err
	}
	b.Log.Stage(b.stage, "uuid", e.header.UUID())
	return nil
}

func (e *enrolment) setToken(state string, blob json.RawMessage) error {
	t := hardware.Token{Type: hardware.TokenType, Version: hardware.TokenVersion, Keyslots: []string{strconv.Itoa(e.chipSlot)},
		State: state, Backend: e.b.backend, Posture: hardware.Posture(e.b.hand.Posture), Platform: string(e.b.platform),
		Enrolled: time.Now().UTC().Format(time.RFC3339), Blob: blob}
	text, err := t.Encode()
	if err != nil {
		return err
	}
	e.token, err = e.header.SetToken(e.token, text)
	return err
}

// seal gives the secret to the chip, and takes it back once under the very
// registers of this boot: a policy that does not fit this image would otherwise
// show at the second boot. Then the chip is closed, before anything but this
// program runs.
func (e *enrolment) seal(ctx context.Context) error {
	b := e.b
	if b.backend != hardware.BackendTPM2 {
		b.Allow(moduleLimit)
	}
	if usesTPM(b.backend) {
		if err := b.tpm.SetupLockout(ctx, tpm2.DefaultLockout); err != nil {
			b.Log.Note("lockout", "problem", err) // another owner's chip: what we seal has no password to guess
		}
	}
	label := card.SealLabel(e.header.UUID())
	var err error
	if e.blob, err = b.keeper.Seal(ctx, label, e.secret); err != nil {
		return err
	}
	got, err := b.keeper.Unseal(ctx, label, e.blob)
	if err != nil {
		return err
	}
	defer clear(got)
	if subtle.ConstantTimeCompare(got, e.secret) != 1 {
		return boot.Failf(ReasonSeal, "the chip gives back something else than it was given")
	}
	b.Log.Stage(b.stage, "backend", b.backend, "posture", b.hand.Posture)
	return b.capChip(ctx, &volume{e.header, e.key}, b.backend)
}

// data makes the data volume. Its first bytes are zeroed first: what an older
// volume left there decrypts to noise now, and mkfs must not take noise for anything.
func (e *enrolment) data(ctx context.Context) error {
	b := e.b
	d := e.space.Data()
	if _, err := d.WriteAt(make([]byte, min(1<<20, d.Size())), 0); err != nil {
		return boot.Failf(ReasonData, "%w", err)
	}
	if err := d.Sync(); err != nil {
		return boot.Failf(ReasonData, "%w", err)
	}
	b.Allow(formatLimit)
	if err := e.space.Format(ctx, e.header.UUID()); err != nil {
		return boot.Failf(ReasonData, "%w", err)
	}
	b.Log.Stage(b.stage, "mib", d.Size()>>20)
	return nil
}

// recovery makes the recovery key, escrows it and shows it.
func (e *enrolment) recovery(ctx context.Context) error {
	b := e.b
	key, err := luks2.NewRecoveryKey(e.random)
	if err != nil {
		return err
	}
	defer key.Wipe()
	slot, err := e.header.AddSlot(b.crypt, e.key, key.Passphrase(), b.People)
	if err != nil {
		return err
	}
	token, err := json.Marshal(map[string]any{"type": systemdRecovery, "keyslots": []string{strconv.Itoa(slot)}})
	if err != nil {
		return err
	}
	if _, err := e.header.SetToken(-1, token); err != nil {
		return err
	}
	var sealed []byte
	if e.operator != nil {
		if sealed, err = escrow.Encrypt(e.operator, escrow.Record{Volume: e.header.UUID(), Key: key}); err != nil {
			return err
		}
	}
	if err := b.conf.WriteEscrow(sealed); err != nil {
		return err
	}
	// Behind the first header and before the commit: see permit.
	if err := b.conf.WriteEnrol(e.record()); err != nil {
		return err
	}
	show(b.Console, key)
	b.Log.Stage(b.stage, "escrow", yesNo(sealed != nil))
	return nil
}

// show prints the key in one write and never through the log.
func show(w io.Writer, key *luks2.RecoveryKey) {
	text := append([]byte("portcullis: recovery key (write it down, it is not shown again):\r\n"), key.Passphrase()...)
	text = append(text, "\r\n"...)
	w.Write(text) // nobody there to read it: the escrow is on the card
	clear(text)
}

func (e *enrolment) record() []byte {
	b := e.b
	return card.Enrolment{Volume: e.header.UUID(), Release: b.Info.Sequence, Backend: b.hand.Backend, Chip: b.hand.Chip,
		Posture: b.hand.Posture, Platform: string(b.platform), Escrow: e.operator != nil,
		VolumePCR: b.hand.VolumePCR, ReEnrolled: b.hand.ReEnrolled}.Encode()
}

// commit is the one write that makes the volume valid.
func (e *enrolment) commit(ctx context.Context) error {
	if err := e.setToken(hardware.StateCommitted, e.blob); err != nil {
		return err
	}
	if err := e.header.Write(e.b.crypt); err != nil {
		return err
	}
	e.b.Log.Stage(e.b.stage, "uuid", e.header.UUID())
	if e.b.tpm != nil { // for lookBack of a later enrolment; the running system needs it too, and makes it where this failed
		if err := e.b.tpm.KeepAttestationKey(ctx); err != nil {
			e.b.Log.Note("attestation-key", "problem", err)
		}
	}
	return nil
}

// mixer gives the exclusive or of the kernel's random bytes and the chip's: as good
// as the better of the two.
type mixer struct {
	ctx    context.Context
	kernel io.Reader
	chip   hardware.Root
}

func (m *mixer) Read(p []byte) (int, error) {
	p = p[:min(len(p), 64)]
	if _, err := io.ReadFull(m.kernel, p); err != nil {
		return 0, err
	}
	c, err := m.chip.Random(m.ctx, len(p))
	if err != nil {
		return 0, err
	}
	defer clear(c)
	if len(c) != len(p) {
		return 0, boot.Failf(boot.Reason(hardware.ReasonFailed), "the chip gives %d random bytes instead of %d", len(c), len(p))
	}
	subtle.XORBytes(p, p, c)
	return len(p), nil
}
