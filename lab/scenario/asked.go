package scenario

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"portcullis/attestserver/result"
)

// askedScene asks the PC by the operator's own command, with a nonce of his own,
// and has the log audited afterwards.
func askedScene() Scene {
	return Scene{
		Name: "asked", Title: "who asks gets a signed answer to his own nonce, and a log that holds it", Trusted: true,
		Run: func(ctx context.Context, s *Stage) error {
			key := base64.StdEncoding.EncodeToString(s.Built.Gateway)
			out, err := s.Run(ctx, "portcullis", "attest", "--run-dir", s.RunDir(), "--key", key, "--context", "before:lab", "--probe", "ktext", "--json")
			if err != nil {
				return fmt.Errorf("attest: %w", err)
			}
			var c result.Claims
			if err := json.Unmarshal(out, &c); err != nil {
				return fmt.Errorf("attest printed no claims: %w", err)
			}
			pc := c.Submods[result.SubmodPC]
			if pc.PC == nil || pc.PC.State != "trusted" || pc.PC.Context != "before:lab" || pc.Status != result.StatusWarning {
				return fmt.Errorf("attest says %s", out)
			}
			if _, err := s.Run(ctx, "portcullis", "log", "audit", "--log", s.StateFile("attestd/verdicts"), "--key", key); err != nil {
				return fmt.Errorf("log audit: %w", err)
			}
			s.Note("%d challenges, log entry %d", pc.PC.Challenges, pc.PC.LogIndex)
			return nil
		},
	}
}
