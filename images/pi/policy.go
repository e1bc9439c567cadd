package pi

import (
	"crypto/x509"

	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/images/pcr"
)

// info is what the initramfs has to know: whom it trusts and which release it is.
func (b *builder) info() (*card.Info, error) {
	der, err := x509.MarshalPKIXPublicKey(&b.o.Keys.Policy.PublicKey)
	if err != nil {
		return nil, err
	}
	i := &card.Info{
		Schema: card.InfoSchema, Model: b.o.Model, Profile: b.o.Profile, Sequence: b.o.Sequence, Threshold: b.o.Threshold,
		PolicyKey: der, NVIndex: b.o.NVIndex, LabChannel: b.lab(), ReleaseKeys: [][]byte{b.o.Keys.Public()}, Root: b.o.Root,
	}
	for _, k := range b.o.TrustKeys {
		i.ReleaseKeys = append(i.ReleaseKeys, k)
	}
	return i, nil
}

// policy returns policy.json: what the chip has to find in its registers before
// it gives the card's key to this release, signed, for each platform the image can start on.
func (b *builder) policy(p *bootPartition) ([]byte, error) {
	branches := []tpmpolicy.Branch{{
		Platform: tpmpolicy.PlatformSelf, PCRs: tpmpolicy.Predict(nil, tpmpolicy.SelfEvents(card.MeasuredDigest(p.files), p.cmdline)...),
	}}
	if image, ok := p.files[card.UKIFile]; ok {
		pcrs, err := efiRegisters(image)
		if err != nil {
			return nil, err
		}
		branches = append(branches, tpmpolicy.Branch{Platform: tpmpolicy.PlatformEFI, PCRs: pcrs})
	}
	f := &tpmpolicy.File{Version: tpmpolicy.FileVersion, Sequence: b.o.Sequence}
	for _, branch := range branches {
		branch.Sequence, branch.NVIndex = b.o.Sequence, b.o.NVIndex
		s, err := tpmpolicy.Sign(b.o.Keys.Policy, branch)
		if err != nil {
			return nil, err
		}
		f.Branches = append(f.Branches, s)
	}
	return f.Encode()
}

// efiRegisters are the registers after UEFI firmware has started the UKI and
// pi-init has measured its phase. 4 has the UKI, which the firmware measures before
// it runs: without 4, whoever boots something else could extend the others himself.
// 9 has the command line and the initramfs as the kernel received them, 11 the UKI's
// sections as its stub measured them. A word that somebody adds to the command line
// shows in both 9 and 12; 12 is empty otherwise and so binds nothing by itself.
func efiRegisters(image []byte) (map[int][32]byte, error) {
	predicted, err := pcr.Predict(image)
	if err != nil {
		return nil, err
	}
	application, err := pcr.PredictBootApplication(image)
	if err != nil {
		return nil, err
	}
	start := map[int][32]byte{4: application, 9: predicted.PCR9, card.PCRPhase: predicted.PCR11}
	return tpmpolicy.Predict(start, tpmpolicy.Event{PCR: card.PCRPhase, Data: []byte(card.PhaseEnter)}), nil
}
