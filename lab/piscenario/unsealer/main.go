// Command unsealer is the attack of a test: root in the running Pi asks the chip for
// the volume's key, with everything that pi-init had. It is built for the test and
// sent into the machine; no image contains it.
//
//	unsealer ENCRYPTED-PARTITION POLICY-PARTITION
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"portcullis/hardware"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/tpmpolicy"
	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/luks2"
)

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Printf("refused %s: %v\n", hardware.ReasonOf(err), err)
		return
	}
	fmt.Println("UNSEALED")
}

func open(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	return f, size, err
}

func run(crypt, boot string) error {
	b, err := os.ReadFile(card.HandoverPath)
	if err != nil {
		return err
	}
	h, err := card.ParseHandover(b)
	if err != nil {
		return err
	}
	f, size, err := open(crypt)
	if err != nil {
		return err
	}
	header, _, err := luks2.Read(f, size)
	if err != nil {
		return err
	}
	if f, size, err = open(boot); err != nil {
		return err
	}
	v, err := fat.Open(f, size)
	if err != nil {
		return err
	}
	text, err := v.ReadFile(card.PolicyFile, tpmpolicy.MaxFile)
	if err != nil {
		return err
	}
	policy, err := tpmpolicy.Parse(text)
	if err != nil {
		return err
	}
	key, err := h.Info().Policy()
	if err != nil {
		return err
	}
	tpm, err := tpm2.Open(tpm2.DefaultPath, tpm2.Config{PolicyKey: key, Policy: policy, Platform: tpmpolicy.Platform(h.Platform), NVIndex: h.NVIndex})
	if err != nil {
		return err
	}
	for _, t := range header.Tokens() {
		if t.Type != hardware.TokenType {
			continue
		}
		ours, err := hardware.ParseToken(t.JSON)
		if err != nil {
			return err
		}
		_, err = tpm.Unseal(context.Background(), card.SealLabel(header.UUID()), ours.Blob)
		return err
	}
	return fmt.Errorf("no token")
}
